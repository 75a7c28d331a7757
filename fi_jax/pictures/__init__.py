"""A picture file -> upright, colour-managed 8-bit RGB: decoding, orientation, resizing, cropping. Nothing about faces."""
