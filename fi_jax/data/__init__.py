"""Faces in: releases as published -> records -> examples (arrays) -> shared-prefix sequences."""
