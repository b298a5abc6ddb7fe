//! Images as models take them: decoded, resized, cropped, scaled and normed as the checkpoint's preprocessor_config.json says.
//!
//! Given a PNG or JPEG file, promises `channels x height x width` numbers, row-major. Every step is that of Pillow, on which the published
//! preprocessing is built: resizing filters each row, then each column, with a kernel as wide as the image shrinks, and rounds to 8 bits after each.

use crate::error::{Result, RuntimeError};
use image::{ImageReader, Limits};
use serde::Deserialize;
use std::fs;
use std::path::Path;

/// Most bytes that decoding an image may take.
const MOST_BYTES: u64 = 1 << 30;
/// Most pixels that an image may be made of on the way.
const MOST_PIXELS: usize = 1 << 28;
const CONFIG: &str = "preprocessor_config.json";

/// What preprocessor_config.json says. Absent keys have the values that most preprocessors have.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Preprocessor {
    do_resize: bool,
    size: Size,
    resample: u8,
    do_center_crop: bool,
    crop_size: Option<Size>,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: Vec<f64>,
    image_std: Vec<f64>,
    /// Steps that are not taken here.
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

/// A size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Size {
    Both { height: u32, width: u32 },
    Shortest { shortest_edge: u32 },
    Square(u32),
}

impl Default for Preprocessor {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: Size::Square(224),
            resample: 2,
            do_center_crop: false,
            crop_size: None,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: vec![0.5; 3],
            image_std: vec![0.5; 3],
            other: serde_json::Map::new(),
        }
    }
}

/// Pixels of 8 bits, row-major, channels innermost.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pixels {
    height: usize,
    width: usize,
    channels: usize,
    values: Vec<u8>,
}

impl Preprocessor {
    /// Reads preprocessor_config.json of a checkpoint folder.
    ///
    /// # Errors
    /// There is none, it cannot be read, or it asks for something else than resizing, cropping, scaling and norming.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = fs::read(&path).map_err(|source| RuntimeError::io(&path, "read", source))?;
        let refuse = |problem: String| {
            RuntimeError::input(path.display().to_string(), problem, "give the image as numbers, with `--inputs FILE`")
        };
        let read: Self = serde_json::from_slice(&text)
            .map_err(|error| refuse(format!("is not a preprocessor of images: {error}")))?;
        let known = ["do_convert_rgb"];
        let further =
            read.other.iter().find(|(key, on)| key.starts_with("do_") && *on == true && !known.contains(&key.as_str()));
        if let Some((key, _)) = further {
            return Err(refuse(format!("asks for `{key}`, which is not done here")));
        }
        if read.do_resize && filter(read.resample).is_none() {
            return Err(refuse(format!("asks for `resample: {}`, expected 0, 2 or 3", read.resample)));
        }
        Ok(read)
    }

    /// The image in `path` with these dimensions: channels (3, or 1 for grey), height, width.
    ///
    /// # Errors
    /// The file is no image, or what the preprocessor makes of it has other dimensions.
    pub fn read(&self, path: &Path, dims: [u64; 3]) -> Result<Vec<f32>> {
        let refuse = |problem: String, help: &str| RuntimeError::input(path.display().to_string(), problem, help);
        let [channels, height, width] = dims;
        let within_bounds = |height: usize, width: usize| match height.checked_mul(width) {
            Some(n) if n <= MOST_PIXELS => Ok(()),
            _ => Err(refuse(
                format!("would be made {height} by {width} pixels"),
                "see the sizes in preprocessor_config.json",
            )),
        };
        let mut pixels = decode(path, channels)?;
        if self.do_resize {
            let (height, width) = self.resized(pixels.height, pixels.width);
            within_bounds(height.max(pixels.height), width)?;
            pixels = resize(&pixels, height, width, filter(self.resample).unwrap_or(BILINEAR));
        }
        if let Some(size) = self.crop_size.filter(|_| self.do_center_crop) {
            let (height, width) = size.exact();
            within_bounds(height, width)?;
            pixels = crop(&pixels, height, width);
        }
        if [pixels.height as u64, pixels.width as u64] != [height, width] {
            let made = format!(
                "is {} by {} pixels after {CONFIG}, the model takes {height} by {width}",
                pixels.height, pixels.width
            );
            return Err(refuse(made, "compile the model with the image size that its preprocessor has"));
        }
        let lacks = |values: &Vec<f64>| self.do_normalize && values.len() < pixels.channels;
        if lacks(&self.image_mean) || lacks(&self.image_std) {
            let problem = format!("has {channels} channels, {CONFIG} has means and deviations of fewer");
            return Err(refuse(problem, "give the image as numbers, with `--inputs FILE`"));
        }
        let area = pixels.height * pixels.width;
        let value = |channel: usize, at: usize| {
            let stored = f64::from(pixels.values[at * pixels.channels + channel]);
            let scaled = if self.do_rescale { stored * self.rescale_factor } else { stored };
            let normed =
                if self.do_normalize { (scaled - self.image_mean[channel]) / self.image_std[channel] } else { scaled };
            normed as f32
        };
        Ok((0..pixels.channels)
            .flat_map(|channel| (0..area).map(move |at| (channel, at)))
            .map(|(c, at)| value(c, at))
            .collect())
    }

    /// Height and width after resizing an image of these.
    fn resized(&self, height: usize, width: usize) -> (usize, usize) {
        match self.size {
            // The other edge is rounded down.
            Size::Shortest { shortest_edge } => {
                let short = height.min(width).max(1);
                let other = |edge: usize| (edge as u64 * u64::from(shortest_edge) / short as u64).max(1) as usize;
                (other(height), other(width))
            }
            size => size.exact(),
        }
    }
}

impl Size {
    fn exact(self) -> (usize, usize) {
        match self {
            Self::Both { height, width } => (height as usize, width as usize),
            Self::Shortest { shortest_edge: n } | Self::Square(n) => (n as usize, n as usize),
        }
    }
}

/// The pixels of a file, in colour or grey.
fn decode(path: &Path, channels: u64) -> Result<Pixels> {
    let refuse = |problem: String| {
        RuntimeError::input(
            path.display().to_string(),
            problem,
            "give a PNG or JPEG file, or numbers with `--inputs FILE`",
        )
    };
    let opened = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let mut reader = opened.map_err(|source| RuntimeError::io(path, "read", source))?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| refuse(format!("is no image that can be read: {error}")))?;
    let (height, width) = (image.height() as usize, image.width() as usize);
    let values = match channels {
        3 => image.into_rgb8().into_raw(),
        1 => image.into_luma8().into_raw(),
        n => return Err(refuse(format!("the model takes {n} channels, images have 3 or 1"))),
    };
    Ok(Pixels { height, width, channels: channels as usize, values })
}

/// A kernel and how far it reaches, in pixels of the larger image.
type Filter = (fn(f64) -> f64, f64);

const NEAREST: Filter = (|_| 1.0, 0.0);
const BILINEAR: Filter = (|x| (1.0 - x.abs()).max(0.0), 1.0);
const BICUBIC: Filter = (cubic, 2.0);

/// The filter of a number that stands for it in Pillow.
fn filter(resample: u8) -> Option<Filter> {
    match resample {
        0 => Some(NEAREST),
        2 => Some(BILINEAR),
        3 => Some(BICUBIC),
        _ => None,
    }
}

/// Keys's cubic convolution with a slope of -1/2.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    match x {
        x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        x if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    }
}

/// For each of `to` pixels, the first of `from` that it is made of, and their parts, which add up to 1.
fn parts(from: usize, to: usize, (kernel, reach): Filter) -> Vec<(usize, Vec<f64>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let part = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        if reach == 0.0 {
            return ((centre as usize).min(from - 1), vec![1.0]);
        }
        let first = (centre - reach * stretch + 0.5).max(0.0) as usize;
        let end = ((centre + reach * stretch + 0.5) as usize).min(from);
        let parts: Vec<f64> = (first..end).map(|k| kernel((k as f64 + 0.5 - centre) / stretch)).collect();
        let sum: f64 = parts.iter().sum();
        (first, parts.into_iter().map(|part| part / sum).collect())
    };
    (0..to).map(part).collect()
}

fn resize(pixels: &Pixels, height: usize, width: usize, filter: Filter) -> Pixels {
    if (pixels.height, pixels.width) == (height, width) || pixels.values.is_empty() {
        return pixels.clone();
    }
    // An axis at a time: lines of `from` pixels, `step` values apart.
    let along =
        |values: &[u8], lines: &dyn Fn(usize) -> usize, n_lines: usize, step: usize, parts: &[(usize, Vec<f64>)]| {
            let mut made = Vec::with_capacity(n_lines * parts.len());
            for line in 0..n_lines {
                let start = lines(line);
                made.extend(parts.iter().map(|(first, parts)| {
                    let sum: f64 = parts
                        .iter()
                        .enumerate()
                        .map(|(k, part)| part * f64::from(values[start + (first + k) * step]))
                        .sum();
                    (sum + 0.5).clamp(0.0, 255.0) as u8
                }));
            }
            made
        };
    let channels = pixels.channels;
    // Rows: a line for each row and channel. The result holds them one after another: `[height, channels, width]`.
    let rows = along(
        &pixels.values,
        &|line| line / channels * pixels.width * channels + line % channels,
        pixels.height * channels,
        channels,
        &parts(pixels.width, width, filter),
    );
    // Columns: `[width, channels, height]`.
    let columns = along(
        &rows,
        &|line| line % channels * width + line / channels,
        width * channels,
        channels * width,
        &parts(pixels.height, height, filter),
    );
    let mut values = Vec::with_capacity(height * width * channels);
    for y in 0..height {
        values.extend((0..width * channels).map(|line| columns[line * height + y]));
    }
    Pixels { height, width, channels, values }
}

/// The middle of an image; black where it is smaller.
fn crop(pixels: &Pixels, height: usize, width: usize) -> Pixels {
    let offset = |has: usize, wants: usize| (has as i64 - wants as i64).div_euclid(2);
    let (top, left) = (offset(pixels.height, height), offset(pixels.width, width));
    let mut values = Vec::with_capacity(height * width * pixels.channels);
    for y in 0..height {
        for x in 0..width {
            let (y, x) = (y as i64 + top, x as i64 + left);
            let inside = (0..pixels.height as i64).contains(&y) && (0..pixels.width as i64).contains(&x);
            let at = (y * pixels.width as i64 + x) as usize * pixels.channels;
            values.extend((0..pixels.channels).map(|c| if inside { pixels.values[at + c] } else { 0 }));
        }
    }
    Pixels { height, width, channels: pixels.channels, values }
}
