"""Still images."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from qwen_vl_utils import ImageError, ImageTooLargeError, MissingFileError, fetch_image, load_image, smart_resize


def gradient(height=70, width=100):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 2, y * 3, (x + y)], axis=-1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


RGB = Image.fromarray(gradient())


@pytest.mark.parametrize("patch", [14, 16])
def test_size_and_filter_are_the_interface_s(patch):
    image = fetch_image({"image": RGB}, image_patch_size=patch)
    height, width = smart_resize(70, 100, 2 * patch)
    assert image.mode == "RGB"
    assert image.size == (width, height)
    assert np.array_equal(np.array(image), np.array(RGB.resize((width, height))))


def test_every_source_gives_the_same(tmp_path):
    content = encoded(RGB)
    path = tmp_path / "a b.png"
    path.write_bytes(content)
    data_url = "data:image/png;base64," + base64.b64encode(content).decode()
    expected = np.array(fetch_image({"image": RGB}))
    sources = [str(path), path, content, f"file://{path}", f"file://{tmp_path}/a%20b.png", data_url]
    for source in sources:
        assert np.array_equal(np.array(fetch_image({"image": source})), expected)
    assert np.array_equal(np.array(fetch_image({"image_url": {"url": data_url}})), expected)
    assert np.array_equal(np.array(fetch_image({"image": RGB, "image_url": "nothing"})), expected)


def half_transparent(mode):
    """Left half hidden red, right half opaque blue, in ``mode``."""
    rgba = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    rgba.paste((0, 0, 255, 255), (32, 0, 64, 64))
    if mode == "RGBA":
        return rgba
    if mode == "P+tRNS":
        image = Image.new("P", (64, 64), 0)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(1, (32, 0, 64, 64))
        image.info["transparency"] = 0
        return image
    if mode == "RGB+tRNS":
        image = rgba.convert("RGB")
        image.info["transparency"] = (255, 0, 0)
        return image
    if mode == "LA":
        image = Image.new("LA", (64, 64), (10, 0))
        image.paste((90, 255), (32, 0, 64, 64))
        return image
    image = Image.new("L", (64, 64), 10)
    image.paste(90, (32, 0, 64, 64))
    image.info["transparency"] = 10
    return image


@pytest.mark.parametrize("mode", ["RGBA", "P+tRNS", "RGB+tRNS", "LA", "L+tRNS"])
@pytest.mark.parametrize("through_file", [False, True])
def test_every_transparency_lies_on_white(mode, through_file):
    source = half_transparent(mode)
    pixels = np.array(load_image(encoded(source) if through_file else source, image_patch_size=None))
    assert pixels[10, 5].tolist() == [255, 255, 255]
    assert pixels[10, 60].tolist() == ([90, 90, 90] if mode.startswith("L") else [0, 0, 255])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = load_image(encoded(RGB, exif=exif), image_patch_size=None)
    plain = np.array(RGB)
    shown = {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1),
        7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(plain, 1),
    }[orientation]
    assert np.array_equal(np.array(stored), shown)


def test_sixteen_bits_are_scaled_not_clipped():
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    for source in (deep, encoded(deep)):
        pixels = np.array(load_image(source, image_patch_size=None))[..., 0].astype(int).ravel()
        assert np.abs(pixels - np.linspace(0, 255, 64 * 64)).max() <= 1


def test_cmyk_and_bilevel_become_rgb():
    for mode in ("CMYK", "1", "L", "YCbCr", "HSV", "F"):
        assert load_image(RGB.convert("RGB").convert("L" if mode in "1F" else "RGB").convert(mode)).mode == "RGB"


def test_a_bomb_is_refused_from_its_header():
    bomb = encoded(Image.new("1", (4000, 4000)))
    with pytest.raises(ImageTooLargeError, match="4000 x 4000"):
        load_image(bomb, max_source_pixels=10**6)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"


@pytest.mark.parametrize("content", [b"", b"no image", encoded(RGB)[:120], POSTSCRIPT])
def test_damaged_images_are_errors(content):
    with pytest.raises(ImageError):
        load_image(content)


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.png"):
        fetch_image({"image": str(tmp_path / "none.png")})
    with pytest.raises(ImageError, match="int"):
        fetch_image({"image": 3})
    with pytest.raises(ImageError, match="NoneType"):
        fetch_image({"image": None})
    with pytest.raises(ImageError, match="base64"):
        fetch_image({"image": "data:image/png,abc"})
    with pytest.raises(KeyError):
        fetch_image({})


def test_explicit_sides():
    assert fetch_image({"image": RGB, "resized_height": 60, "resized_width": 90}).size == (84, 56)
