//! A small manifest and code that tests build on: two inputs, one weight, caches of each kind, kernels that only return.

use super::VERSION;
use super::container::{CodeImage, VariantParts};
use super::manifest::*;

/// A view of a whole row of `row_stride` elements of `element_bytes` at `offset`.
pub(crate) fn arena(arena: usize, offset: u64, row_stride: u64, element_bytes: u64) -> BufferRef {
    BufferRef::Arena { arena, offset, column: 0, row_stride, element_bytes }
}

/// Axis `tokens`; inputs `input_ids` (vocabulary of 10) and `kinds` (default 0); output `logits [rows, 4]`; weight `w [4, 3]` from two
/// sources; groups `full` and `window 5` with pages of 4 tokens, and `step`.
pub(crate) fn manifest() -> Manifest {
    let slot = |path: &str| CacheSlot { path: path.into(), page_bytes: 128, token_bytes: 32, alias: None };
    let group = |name: &str, keep| CacheGroup {
        name: name.into(),
        axis: 0,
        keep,
        page_tokens: 4,
        slots: vec![slot("a.k"), slot("a.v")],
    };
    let source = |name: &str| Source {
        path: name.into(),
        names: vec![name.into()],
        shape: vec![2, 3],
        steps: vec![],
        offset: 0.0,
    };
    Manifest {
        version: VERSION,
        compiler: "test 0".into(),
        model: "sample".into(),
        target: Target { name: "cpu:here".into(), arch: std::env::consts::ARCH.into(), features: vec![] },
        axes: vec!["tokens".into()],
        extents: vec![None],
        inputs: vec![
            Input {
                name: "input_ids".into(),
                dtype: DType::I64,
                axis: 0,
                dims: vec![],
                default: None,
                limit: Some(10),
                buffer: arena(0, 0, 1, 8),
            },
            Input {
                name: "kinds".into(),
                dtype: DType::I64,
                axis: 0,
                dims: vec![],
                default: Some(0.0),
                limit: Some(2),
                buffer: arena(0, 8, 1, 8),
            },
        ],
        outputs: vec![Output {
            name: "logits".into(),
            dtype: DType::F32,
            axis: 0,
            rows: true,
            dims: vec![4],
            buffer: arena(1, 0, 4, 4),
        }],
        whole_sequences: false,
        max_positions: vec![Some(40)],
        weights: vec![Weight {
            name: "a + b".into(),
            dtype: DType::F32,
            shape: vec![4, 3],
            sources: vec![source("a.weight"), source("b.weight")],
            pack: Pack::Panels { columns: 16, depth: 1 },
            split: None,
        }],
        format: "hf".into(),
        ignore: vec!["rotary.**".into()],
        caches: vec![group("full", Keep::All), group("window 5", Keep::Window(5)), group("step", Keep::Step)],
        arenas: vec![
            Arena { axis: 0, rows: false, bytes_per_row: 64 },
            Arena { axis: 0, rows: true, bytes_per_row: 16 },
        ],
        kernels: vec![Kernel { name: "nothing".into(), scratch_bytes: 64, shared_bytes: 0, waits: false }],
        phases: vec![Phase { name: "one".into(), max_rows: Some(1) }, Phase { name: "many".into(), max_rows: None }],
        launches: vec![Launch {
            name: "all".into(),
            axis: 0,
            rows: false,
            times: 1,
            variants: vec![
                Variant { kernel: 0, rows_per_tile: 1, tiles_per_block: 1, multiplies: None },
                Variant { kernel: 0, rows_per_tile: 2, tiles_per_block: 3, multiplies: Some(Products::Half) },
            ],
            operands: vec![arena(0, 0, 1, 8), BufferRef::Weight(0), BufferRef::Cache { group: 1, slot: 1 }],
            when: None,
            collective: None,
            cost: Some(Cost {
                weight_bytes: 48,
                row_bytes: 8,
                row_flops: 24,
                products: Some(Products::Single),
                ..Cost::default()
            }),
        }],
        parameters: 12,
    }
}

/// `ret` at byte 64, so that an entry other than 0 is used.
pub(crate) fn code() -> CodeImage {
    let mut bytes = vec![0; 128];
    #[cfg(target_arch = "x86_64")]
    bytes[64..65].copy_from_slice(&[0xc3]);
    #[cfg(target_arch = "aarch64")]
    bytes[64..68].copy_from_slice(&0xd65f_03c0_u32.to_le_bytes());
    CodeImage { bytes, entries: vec![64] }
}

/// [`manifest`] with [`code`].
pub(crate) fn parts() -> VariantParts {
    VariantParts { manifest: manifest(), code: code() }
}
