"""A picture -> faces in one frame: detection, segmentation maps, and the face parser, its training included."""
