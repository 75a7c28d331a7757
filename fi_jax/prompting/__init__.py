"""Records and questions -> tokens of shared-prefix sequences; and back, from logits and text to options and labels."""
