"""A picture file -> upright 8-bit sRGB -> square crops. Nothing about faces."""
