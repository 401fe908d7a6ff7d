"""An artifact in, a version of ``model_repository/`` out: fused, quantized, compared with the original, or refused."""
