"""Still images to upright, opaque RGB of a legal size. Knows no video and no network."""

from __future__ import annotations

import base64
import binascii
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qwen_vl_utils.constants import SPATIAL_MERGE_SIZE
from qwen_vl_utils.errors import ImageError, ImageTooLargeError, MissingFileError
from qwen_vl_utils.resize import smart_resize

MAX_SOURCE_PIXELS = 89_478_485
"""Default limit on width * height of a source, Pillow's own: a quarter of a gibibyte as RGB."""

# By content. Left out on purpose: EPS (runs Ghostscript), and readers that nobody's camera or browser writes.
ACCEPTED_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")

_WHITE = 255

ImageSource = str | Path | bytes | Image.Image


def load_image(
    source: ImageSource,
    *,
    image_patch_size: int | None = 16,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    resized_height: int | None = None,
    resized_width: int | None = None,
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> Image.Image:
    """``source`` (path, encoded bytes or PIL image) as PIL RGB, upright, on white, resized by ``smart_resize``.

    Sides become multiples of 2 * image_patch_size within the image bounds (or the given ones); None for
    image_patch_size leaves the size. An animation gives its first picture.

    Raises: MissingFileError, ImageTooLargeError (from the header, before decoding), ImageError, SizeError.
    """
    image = to_rgb(open_image(source, max_source_pixels=max_source_pixels))
    if image_patch_size is None:
        return image
    return resize_image(
        image,
        image_patch_size=image_patch_size,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        resized_height=resized_height,
        resized_width=resized_width,
    )


def open_image(source: ImageSource, *, max_source_pixels: int = MAX_SOURCE_PIXELS) -> Image.Image:
    """``source`` decoded, turned by its EXIF orientation, in its own mode."""
    if isinstance(source, Image.Image):
        _check_pixels(source, max_source_pixels, None)
        return ImageOps.exif_transpose(source)
    name = None if isinstance(source, bytes) else Path(source).name
    try:
        image = Image.open(_stream(source), formats=_formats_here())
        with image:
            _check_pixels(image, max_source_pixels, name)
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as cause:
        raise ImageTooLargeError("the image has too many pixels", file=name, cause=cause) from cause
    except UnidentifiedImageError as cause:
        raise ImageError("no accepted image format is recognised", file=name) from cause
    except (OSError, SyntaxError, ValueError) as cause:  # Pillow's own for damaged data, by format
        if isinstance(cause, ImageError | MissingFileError):
            raise
        raise ImageError("the image is damaged", file=name, stage="decode", cause=cause) from cause


@lru_cache(maxsize=1)
def _formats_here() -> tuple[str, ...]:
    """The accepted formats that this Pillow was built with; naming another one is a KeyError in it."""
    Image.init()
    return tuple(name for name in ACCEPTED_IMAGE_FORMATS if name in Image.OPEN)


def _stream(source: str | Path | bytes) -> io.BytesIO | Path:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    path = Path(source)
    if not path.is_file():
        raise MissingFileError("no such image file, or not a regular one", file=path)
    return path


def _check_pixels(image: Image.Image, limit: int, name: str | None) -> None:
    if image.width * image.height > limit:
        raise ImageTooLargeError(f"{image.width} x {image.height} pixels: at most {limit} are accepted", file=name)


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` as RGB: any transparency (alpha, palette, colour key) lies on white; 16 bits are scaled to 8."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, (255, 255, 255))
        opaque.paste(rgba, mask=rgba.getchannel("A"))
        return opaque
    if image.mode.startswith("I"):
        return _from_deep_grey(image)
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey, 0..65535 to 0..255, rounded: Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    if int(values.max(initial=0)) > _WHITE:
        values = (values + 128) // 257
    return Image.fromarray(values.clip(0, _WHITE).astype(np.uint8)).convert("RGB")


def resize_image(
    image: Image.Image,
    *,
    image_patch_size: int,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    resized_height: int | None = None,
    resized_width: int | None = None,
) -> Image.Image:
    """``image`` at the size that ``smart_resize`` gives with the image bounds, by Pillow's bicubic."""
    factor = SPATIAL_MERGE_SIZE * image_patch_size
    if resized_height is not None and resized_width is not None:
        height, width = smart_resize(resized_height, resized_width, factor)
    else:
        height, width = smart_resize(image.height, image.width, factor, min_pixels, max_pixels)
    return image.resize((max(factor, width), max(factor, height)), Image.Resampling.BICUBIC)


def decode_data_url(url: str) -> bytes:
    """The bytes of "data:image/...;base64,...". Raises ImageError."""
    _, mark, payload = url.partition("base64,")
    if not mark:
        raise ImageError("a data URL must hold its image in base64")
    try:
        return base64.b64decode(payload)
    except (binascii.Error, ValueError) as cause:
        raise ImageError("the base64 of a data URL is damaged", cause=cause) from cause
