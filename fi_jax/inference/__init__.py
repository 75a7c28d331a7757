"""From a trained model to answers: prefix cache, scoring, generation."""
