"""FastAPI and transformers, as most teams write it: a request is a forward pass.

::

    uvicorn fastapi_app:app --workers 1
"""

# its types are in the rivals' environment
# mypy: disable-error-code="untyped-decorator"
from fastapi import FastAPI
from pydantic import BaseModel
from scorer import scorer

app = FastAPI()
score = scorer()


class Comments(BaseModel):
    """The body of a request."""

    texts: list[str]


@app.post("/classify")
def classify(comments: Comments) -> dict[str, list[list[float]]]:
    """A probability for each label of each text. Not ``async``: FastAPI runs it in one of its threads."""
    return {"scores": score(comments.texts)}


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}
