"""captune: teach an image generator your subject from a folder of pictures, and see which captions taught it best."""

__version__ = "0.1.0"
