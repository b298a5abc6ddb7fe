//! Tensor maps: how a tile lies in a tensor in global memory (PTX ISA, sections 5.5.1 to 5.5.7). The hardware's layout of the 128 bytes is
//! not public; these are the emulator's own, which only its instructions read.

use crate::exec::fault::FaultKind;

/// How chunks of 16 bytes are exchanged in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    /// Rows follow each other.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

impl Swizzle {
    /// The bytes within which chunks are exchanged.
    pub(crate) fn width(self) -> u64 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// A tensor of up to five dimensions, the innermost first, and the box that one instruction copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Where it starts in global memory; a multiple of 16.
    pub address: u64,
    /// Bytes of an element.
    pub element_bytes: u32,
    /// Its extents, in elements.
    pub dims: Vec<u64>,
    /// Bytes from one to the next, of all dimensions but the first; multiples of 16.
    pub strides: Vec<u64>,
    /// The box's extents, in elements.
    pub box_dims: Vec<u32>,
    /// How a box lies in shared memory.
    pub swizzle: Swizzle,
}

const MAGIC: u64 = u64::from_le_bytes(*b"emu-tmap");
const RANK: usize = 5;

impl TensorMap {
    /// The bytes that a kernel takes as a parameter, aligned to 64.
    ///
    /// # Errors
    /// If the hardware would not take such a tensor.
    pub fn encode(&self) -> Result<[u8; 128], String> {
        self.check()?;
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(self.address.to_le_bytes());
        bytes.extend((self.dims.len() as u32).to_le_bytes());
        bytes.extend(self.element_bytes.to_le_bytes());
        bytes.extend((self.swizzle.width()).to_le_bytes());
        for axis in 0..RANK {
            bytes.extend(self.dims.get(axis).unwrap_or(&1).to_le_bytes());
        }
        for axis in 0..RANK - 1 {
            bytes.extend(self.strides.get(axis).unwrap_or(&0).to_le_bytes());
        }
        for axis in 0..RANK {
            bytes.extend((*self.box_dims.get(axis).unwrap_or(&1) as u16).to_le_bytes());
        }
        let mut out = [0; 128];
        out[..bytes.len()].copy_from_slice(&bytes);
        Ok(out)
    }

    fn check(&self) -> Result<(), String> {
        let rank = self.dims.len();
        if !(1..=RANK).contains(&rank) || self.strides.len() + 1 != rank || self.box_dims.len() != rank {
            return Err(format!("a tensor map has 1 to 5 dimensions, not {rank}, and a stride for each but the first"));
        }
        if !self.address.is_multiple_of(16) || self.strides.iter().any(|s| !s.is_multiple_of(16) || *s >= 1 << 40) {
            return Err("the address and the strides are multiples of 16".to_owned());
        }
        if !matches!(self.element_bytes, 1 | 2 | 4 | 8) || self.dims.iter().any(|&d| d == 0 || d > 1 << 32) {
            return Err("elements have 1, 2, 4 or 8 bytes, and extents fit 32 bits".to_owned());
        }
        if self.box_dims.iter().any(|&b| b == 0 || b > 256) {
            return Err(format!("a box of {:?} elements: extents are from 1 to 256", self.box_dims));
        }
        let inner = u64::from(self.box_dims[0] * self.element_bytes);
        if !inner.is_multiple_of(16) {
            return Err(format!("rows of a box are multiples of 16 bytes, not {inner}"));
        }
        if self.swizzle != Swizzle::None && inner > self.swizzle.width() {
            return Err(format!("rows of {inner} bytes are longer than {:?}", self.swizzle));
        }
        Ok(())
    }

    pub(crate) fn decode(bytes: &[u8; 128]) -> Result<Self, FaultKind> {
        let long = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
        let word = |at: usize| long(at) as u32;
        if long(0) != MAGIC {
            return Err(FaultKind::Operand("this is not a tensor map of the emulator".to_owned()));
        }
        let rank = word(16) as usize;
        Ok(Self {
            address: long(8),
            element_bytes: word(20),
            swizzle: match long(24) {
                32 => Swizzle::B32,
                64 => Swizzle::B64,
                128 => Swizzle::B128,
                _ => Swizzle::None,
            },
            dims: (0..rank).map(|i| long(32 + 8 * i)).collect(),
            strides: (1..rank).map(|i| long(64 + 8 * i)).collect(),
            box_dims: (0..rank).map(|i| word(104 + 2 * i) & 0xffff).collect(),
        })
    }

    pub(crate) fn box_bytes(&self) -> u64 {
        self.box_dims.iter().map(|&d| u64::from(d)).product::<u64>() * u64::from(self.element_bytes)
    }

    /// The rows of a box at some coordinates: for each, where in the box it starts, and the part of it that is in the tensor, as bytes from
    /// its start and their address.
    pub(crate) fn rows(&self, coordinates: &[i32]) -> Vec<BoxRow> {
        let element = u64::from(self.element_bytes);
        let row_bytes = u64::from(self.box_dims[0]) * element;
        let count: u32 = self.box_dims[1..].iter().product();
        let mut rows = Vec::with_capacity(count as usize);
        for index in 0..count {
            let (mut rest, mut address, mut inside) = (index, self.address, true);
            let axes = coordinates.iter().zip(&self.box_dims).zip(&self.dims).skip(1);
            for (((&coordinate, &box_dim), &dim), &stride) in axes.zip(&self.strides) {
                let at = i64::from(coordinate) + i64::from(rest % box_dim);
                rest /= box_dim;
                inside &= at >= 0 && (at as u64) < dim;
                address = address.wrapping_add_signed(at.wrapping_mul(stride as i64));
            }
            let first = i64::from(coordinates[0]);
            let from = (-first).clamp(0, self.box_dims[0].into()) as u64;
            let to = (self.dims[0] as i64 - first).clamp(0, self.box_dims[0].into()) as u64;
            let valid = if inside && from < to { from * element..to * element } else { 0..0 };
            let address = address.wrapping_add_signed((first + from as i64) * element as i64);
            rows.push(BoxRow { start: u64::from(index) * row_bytes, bytes: row_bytes, valid, address });
        }
        rows
    }
}

/// A row of a box.
pub(crate) struct BoxRow {
    /// From the box's start.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// The bytes of it that are in the tensor.
    pub(crate) valid: std::ops::Range<u64>,
    /// The address of the first of these.
    pub(crate) address: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            address: 0x1000,
            element_bytes: 2,
            dims: vec![20, 3],
            strides: vec![48],
            box_dims: vec![16, 2],
            swizzle: Swizzle::None,
        }
    }

    #[test]
    fn bytes_and_back() {
        assert_eq!(TensorMap::decode(&map().encode().unwrap()), Ok(map()));
        assert!(TensorMap::decode(&[0; 128]).is_err());
        let with = |f: fn(&mut TensorMap)| {
            let mut map = map();
            f(&mut map);
            map.encode()
        };
        assert!(with(|m| m.strides = vec![40]).is_err());
        assert!(with(|m| m.box_dims = vec![15, 2]).is_err());
        assert!(with(|m| m.swizzle = Swizzle::B32).is_ok());
        assert!(with(|m| (m.swizzle, m.box_dims) = (Swizzle::B32, vec![32, 2])).is_err());
    }

    #[test]
    fn rows_end_where_the_tensor_does() {
        let rows = map().rows(&[8, 2]);
        assert_eq!((rows[0].valid.clone(), rows[0].address), (0..24, 0x1000 + 2 * 48 + 16));
        assert_eq!((rows[1].valid.clone(), rows[1].start), (0..0, 32));
        let rows = map().rows(&[-4, -1]);
        assert!(rows[0].valid.is_empty());
        assert_eq!((rows[1].valid.clone(), rows[1].address), (8..32, 0x1000));
    }
}
