"""Programs that run inside an image, in an interpreter of the image: the platform only sends their source.

They need Python 3.8 or newer and nothing else, not even a module that an interpreter does not load by itself: what they
imported would be missing from a recording, or be found by the agent. All are executed in one namespace; what one takes
from another is imported for the type checker alone.
"""
