//! Kernels as LLVM 22 emits them: `tests/softmax.ptx` and `tests/gemm.ptx`, whose C is in their heads.

use half::bf16;
use xfc_emulator::{Launch, Memory, Module, launch};

use crate::harness::{Random, bytes_of, floats};

#[test]
fn softmax_of_rows() {
    let module = Module::parse(include_str!("../softmax.ptx")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((module.version(), module.target()), ("8.6", "sm_90a"));
    let names: Vec<_> = module.kernels().map(|k| k.name.as_str()).collect();
    assert_eq!(names, ["softmax"]);
    assert_eq!(module.kernel("softmax").unwrap().shared_bytes, 1024);
    let mut random = Random::new(1);
    for columns in [1usize, 31, 300, 515] {
        let rows = 3;
        let values: Vec<f32> = (0..rows * columns).map(|_| random.unit() * 4.0).collect();
        let mut memory = Memory::new();
        let x = memory.alloc(values.len() as u64 * 4, 4);
        let y = memory.alloc_uninit(values.len() as u64 * 4, 4);
        memory.write(x, &bytes_of(&values, f32::to_le_bytes)).unwrap();
        let mut params = bytes_of(&[x, y], u64::to_le_bytes);
        params.extend((columns as u32).to_le_bytes());
        let stats = launch(&module, "softmax", &mut memory, &Launch::new([rows as u32, 1, 1], [256, 1, 1], &params));
        let stats = stats.unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(stats.bank_conflicts().count(), 0);
        let mut out = vec![0; values.len() * 4];
        memory.read(y, &mut out).unwrap();
        for (row, got) in values.chunks(columns).zip(floats(&out).chunks(columns)) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f64> = row.iter().map(|v| f64::from(v - most).exp2()).collect();
            let sum: f64 = powers.iter().sum();
            for (p, got) in powers.iter().zip(got) {
                assert!((p / sum - f64::from(*got)).abs() < 1e-6, "{got} for {}", p / sum);
            }
        }
    }
}

/// `C = A · Bᵀ` by blocks of four warps, through `cp.async`, `ldmatrix` and `mma`; its swizzle leaves no bank conflicts.
#[test]
fn products_of_matrices() {
    let module = Module::parse(include_str!("../gemm.ptx")).unwrap_or_else(|e| panic!("{e}"));
    let mut random = Random::new(2);
    for (m, n, k) in [(32, 32, 32), (64, 96, 160)] {
        let mut matrix = |rows: usize| (0..rows * k).map(|_| bf16::from_f32(random.unit())).collect::<Vec<_>>();
        let (a, b) = (matrix(m), matrix(n));
        let mut memory = Memory::new();
        let mut upload = |values: &[bf16]| {
            let at = memory.alloc(values.len() as u64 * 2, 16);
            memory.write(at, &bytes_of(values, bf16::to_le_bytes)).unwrap();
            at
        };
        let (at_a, at_b) = (upload(&a), upload(&b));
        let at_c = memory.alloc_uninit((m * n * 4) as u64, 16);
        let mut params = bytes_of(&[at_a, at_b, at_c], u64::to_le_bytes);
        params.extend(bytes_of(&[n as u32, k as u32], u32::to_le_bytes));
        let how = Launch::new([n as u32 / 32, m as u32 / 32, 1], [128, 1, 1], &params);
        let stats = launch(&module, "gemm", &mut memory, &how).unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(stats.bank_conflicts().collect::<Vec<_>>(), []);
        let mut out = vec![0; m * n * 4];
        memory.read(at_c, &mut out).unwrap();
        for (at, got) in floats(&out).into_iter().enumerate() {
            let (row, column) = (at / n, at % n);
            let exact: f64 = (0..k).map(|x| a[row * k + x].to_f64() * b[column * k + x].to_f64()).sum();
            assert!((f64::from(got) - exact).abs() < 1e-4, "row {row} column {column}: {got} for {exact}");
        }
    }
}
