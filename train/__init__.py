"""Comments in, an artifact folder out: fine-tune a classifier, calibrate it, tune its thresholds."""
