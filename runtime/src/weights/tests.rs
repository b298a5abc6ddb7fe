//! Checkpoints on disk, bound to manifests: every layout, every mistake.

use super::kept::bind_kept;
use super::*;
use crate::artifact::manifest::*;
use crate::artifact::sample;
use crate::folder::CacheFolder;
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;

/// Writes tensors of consecutive f32 numbers from `start`.
pub(crate) fn write(path: &Path, tensors: &[(&str, &[usize], f32)]) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape, start)| {
            (0..shape.iter().product::<usize>()).flat_map(|i| (start + i as f32).to_le_bytes()).collect()
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape, _), data)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn f32s(weights: &PackedWeights, index: usize, n: usize) -> Vec<f32> {
    let bytes = &weights.block[weights.offsets[index] as usize..][..4 * n];
    bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

#[test]
fn joins_and_packs() {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("model.safetensors"),
        &[("a.weight", &[2, 3], 0.0), ("b.weight", &[2, 3], 10.0), ("rotary.inv", &[1], 0.0)],
    );
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let weights = bind(&sample::manifest(), &checkpoint, 2, None).unwrap();
    let packed = f32s(&weights, 0, 48);
    for (o, row) in [[0., 1., 2.], [3., 4., 5.], [10., 11., 12.], [13., 14., 15.]].iter().enumerate() {
        for (i, value) in row.iter().enumerate() {
            assert_eq!(packed[i * 16 + o], *value);
        }
    }
    assert!((0..3).all(|i| packed[i * 16 + 4..i * 16 + 16].iter().all(|&x| x == 0.0)));
}

/// KiB of a mapped file that are this process's memory.
#[cfg(target_os = "linux")]
fn resident(file: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(file.to_str().unwrap()));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What was read of a checkpoint takes no memory once it is given back, and is read again as it was.
#[cfg(target_os = "linux")]
#[test]
fn what_was_read_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    write(&path, &[("a", &[1 << 20], 0.0)]);
    let Checkpoint::Stored(stored) = Checkpoint::open(&path).unwrap() else { panic!("made up") };
    let sum = || stored.bytes(stored.tensor("a").unwrap()).iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let before = sum();
    assert!(resident(&path) >= 4096);
    stored.release();
    assert!(resident(&path) < 64);
    assert_eq!(sum(), before);
}

#[test]
fn every_wrong_tensor_is_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write(
        &path,
        &[
            ("model.a.weight", &[2, 3], 0.0),
            ("b.weight", &[3, 2], 10.0),
            ("rotary.x.y", &[1], 0.0),
            ("stray", &[1], 0.0),
        ],
    );
    let error = bind(&sample::manifest(), &Checkpoint::open(&path).unwrap(), 1, None).unwrap_err().to_string();
    assert!(error.contains("x.safetensors: 4 tensors do not fit"), "{error}");
    assert!(error.contains("`a.weight`: missing, expected shape [2, 3]; did you mean `model.a.weight`?"), "{error}");
    assert!(error.contains("`b.weight`: shape [3, 2], expected [2, 3]"), "{error}");
    assert!(error.contains("`stray`: shape [1], nothing reads it"), "{error}");
    assert!(!error.contains("rotary"), "{error}");
}

#[test]
fn what_is_missing_may_be_made_up_and_what_is_unread_is_remarked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write(&path, &[("a.weight", &[2, 3], 0.0), ("stray", &[1], 0.0)]);
    let open = || Checkpoint::open(&path).unwrap();
    let error = bind(&sample::manifest(), &open(), 1, None).unwrap_err().to_string();
    assert!(error.contains("`b.weight`: missing"), "{error}");
    let filled = bind(&sample::manifest(), &open().with_missing_made_up(3), 1, None).unwrap();
    assert!(
        filled.remarks[0].contains("made up") && filled.remarks[0].ends_with(": `b.weight`"),
        "{:?}",
        filled.remarks
    );
    assert!(filled.remarks[1].ends_with(": `stray`"), "{:?}", filled.remarks);
    write(&path, &[("a.weight", &[2, 3], 0.0), ("b.weight", &[2, 3], 0.0), ("stray", &[1], 0.0)]);
    let whole = bind(&sample::manifest(), &open(), 1, None).unwrap();
    assert_eq!(whole.remarks.len(), 1);
}

#[test]
fn leading_parts_are_read_where_the_manifest_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let bound = |manifest: &Manifest, shape: &[usize]| {
        write(&path, &[("a.weight", shape, 0.0), ("b.weight", &[2, 3], 10.0)]);
        bind(manifest, &Checkpoint::open(&path).unwrap(), 1, None)
    };
    let plain = sample::manifest();
    let mut leads = sample::manifest();
    for (dim, len) in [(0, 2), (1, 3)] {
        leads.weights[0].sources[0].steps.insert(dim, Step::Lead { dim, len });
    }
    let whole = bound(&leads, &[2, 3]).unwrap();
    assert_eq!((f32s(&whole, 0, 48), whole.remarks), (f32s(&bound(&plain, &[2, 3]).unwrap(), 0, 48), vec![]));
    let part = bound(&leads, &[5, 4]).unwrap();
    let packed = f32s(&part, 0, 48);
    for (o, row) in [[0., 1., 2.], [4., 5., 6.], [10., 11., 12.], [13., 14., 15.]].iter().enumerate() {
        for (i, value) in row.iter().enumerate() {
            assert_eq!(packed[i * 16 + o], *value);
        }
    }
    assert_eq!(part.remarks.len(), 1);
    assert!(
        part.remarks[0].ends_with("only the leading part is read: `a.weight [2, 3] of [5, 4]`"),
        "{:?}",
        part.remarks
    );
    for (manifest, shape, expected) in [
        (&plain, [5, 3], "shape [5, 3], expected [2, 3]"),
        (&leads, [5, 2], "shape [5, 2], expected [2 or more, 3 or more]"),
        (&leads, [1, 3], "shape [1, 3], expected [2 or more, 3 or more]"),
    ] {
        let error = bound(manifest, &shape).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected} is not in: {error}");
    }
}

#[test]
fn shards_and_their_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("one.safetensors"), &[("a.weight", &[2, 3], 0.0)]);
    write(&folder.path().join("two.safetensors"), &[("b.weight", &[2, 3], 10.0)]);
    let index = folder.path().join("model.safetensors.index.json");
    let open = |map: &str| {
        std::fs::write(&index, format!("{{\"metadata\": {{}}, \"weight_map\": {map}}}")).unwrap();
        Checkpoint::open(folder.path())
    };
    let checkpoint = open(r#"{"a.weight": "one.safetensors", "b.weight": "two.safetensors"}"#).unwrap();
    bind(&sample::manifest(), &checkpoint, 1, None).unwrap();
    let refused = |map: &str, expected: &str| {
        let error = open(map).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(r#"{"a.weight": "../one.safetensors"}"#, "not a file of the same folder");
    refused(r#"{"c.weight": "one.safetensors"}"#, "do not hold: c.weight");
    refused(r#"{"a.weight": "three.safetensors"}"#, "three.safetensors: cannot open");
    refused("3", "is not an index");
}

#[test]
fn packed_weights_are_kept_for_the_same_checkpoint_and_layout() {
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheFolder::new(folder.path().join("cache"), 1_000_000);
    let path = folder.path().join("model.safetensors");
    let files = || cache.entries().unwrap();
    let load = |manifest: &Manifest| {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let kept = bind_kept(manifest, &checkpoint, 1, None, &cache).unwrap();
        let packed = bind(manifest, &checkpoint, 1, None).unwrap();
        assert!(kept.block[..] == packed.block[..] && kept.offsets == packed.offsets);
        assert_eq!(kept.remarks, packed.remarks);
    };
    let manifest = sample::manifest();
    let tensors: &[(&str, &[usize], f32)] =
        &[("a.weight", &[2, 3], 0.0), ("b.weight", &[2, 3], 10.0), ("more", &[1], 0.0)];
    write(&path, tensors);
    load(&manifest);
    assert_eq!(files().len(), 1);
    let (file, written) = (files()[0].path.clone(), std::fs::metadata(&files()[0].path).unwrap().modified().unwrap());
    let whole = std::fs::read(&file).unwrap();
    load(&manifest);
    assert_eq!((files().len(), std::fs::read(&file).unwrap() == whole), (1, true));
    assert!(files()[0].used >= written);

    // A file that is not what was written is packed again.
    for damage in [0, whole.len() - 60, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[damage] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        load(&manifest);
        assert!(std::fs::read(&file).unwrap() == whole, "byte {damage}");
    }
    for end in [0, 7, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..end]).unwrap();
        load(&manifest);
        assert!(std::fs::read(&file).unwrap() == whole, "cut at {end}");
    }

    // Another layout, another checkpoint.
    let mut other = manifest.clone();
    other.ignore = vec!["more".into()];
    load(&other);
    assert_eq!(files().len(), 2);
    let mut tensors = tensors.to_vec();
    tensors[0].2 = 1.0;
    write(&path, &tensors);
    load(&manifest);
    assert_eq!(files().len(), 3);

    // What cannot be kept is a remark.
    let full = CacheFolder::new(folder.path().join("full"), 10);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let packed = bind_kept(&manifest, &checkpoint, 1, None, &full).unwrap();
    assert!(packed.remarks.iter().any(|r| r.contains("XFC_CACHE_MAX")), "{:?}", packed.remarks);
    bind_kept(&manifest, &Checkpoint::random(1), 1, None, &full).unwrap();
    assert!(full.entries().unwrap().is_empty());
}

#[test]
fn damaged_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[("a.weight", &[2, 3], 0.0)]);
    let whole = std::fs::read(&path).unwrap();
    for end in 0..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
        assert_eq!(error.exit_code(), crate::error::EXIT_INPUT);
    }
    assert!(Checkpoint::open(&folder.path().join("none")).is_err());
    let empty = tempfile::tempdir().unwrap();
    assert!(Checkpoint::open(empty.path()).unwrap_err().to_string().contains("holds no safetensors"));
}

#[test]
fn random_needs_no_file_and_ignores_threads() {
    let pack = |threads| bind(&sample::manifest(), &Checkpoint::random(3), threads, None).unwrap().block.to_vec();
    assert_eq!(pack(1), pack(4));
    assert!(pack(1).iter().any(|&byte| byte != 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The panel formula of the manifest, element by element, for sources stored transposed.
    #[test]
    fn panels_follow_the_formula(a in 1u64..40, b in 1u64..40, inputs in 1u64..200, columns in 1u64..20, depth in 1u64..5, bf16 in any::<bool>()) {
        let mut manifest = sample::manifest();
        let dtype = if bf16 { DType::BF16 } else { DType::F32 };
        let source = |name: &str, outputs| Source {
            path: name.into(), names: vec![name.into()], shape: vec![inputs, outputs], steps: vec![Step::Transpose { perm: vec![1, 0] }], offset: 0.0,
        };
        // The sample's cost is of another weight.
        manifest.launches[0].cost = None;
        manifest.weights = vec![Weight {
            name: "w".into(), dtype, shape: vec![a + b, inputs], sources: vec![source("a", a), source("b", b)],
            pack: Pack::Panels { columns, depth },
            split: None,
        }];
        crate::artifact::validate::check(&manifest).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        write(&path, &[("a", &[inputs as usize, a as usize], 0.0), ("b", &[inputs as usize, b as usize], 50_000.0)]);
        let weights = bind(&manifest, &Checkpoint::open(&path).unwrap(), 2, None).unwrap();
        let size = dtype.size_bytes();
        let (rows, cols) = ((a + b).next_multiple_of(columns), inputs.next_multiple_of(depth));
        for o in 0..rows {
            for i in 0..cols {
                let at = ((o / columns * inputs.div_ceil(depth) + i / depth) * columns + o % columns) * depth + i % depth;
                let value = match o {
                    _ if i >= inputs || o >= a + b => 0.0,
                    o if o < a => (i * a + o) as f32,
                    o => 50_000.0 + (i * b + o - a) as f32,
                };
                let mut expected = vec![0; size];
                store(value.into(), dtype, &mut expected);
                prop_assert_eq!(&weights.block[at as usize * size..][..size], &expected[..], "o {} i {}", o, i);
            }
        }
    }
}

/// Name, type and shape of a tensor of zeros.
type Described = (&'static str, Dtype, &'static [usize]);

#[test]
fn scales_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let open = |tensors: &[Described]| {
        let bytes = [0u8; 64];
        let view = |(name, dtype, shape): &Described| {
            let bits = shape.iter().product::<usize>() * dtype.bitsize();
            ((*name).to_owned(), TensorView::new(*dtype, shape.to_vec(), &bytes[..bits / 8]).unwrap())
        };
        let path = folder.path().join("model.safetensors");
        safetensors::serialize_to_file(tensors.iter().map(view), None, &path).unwrap();
        bind(&sample::manifest(), &Checkpoint::open(folder.path()).unwrap(), 1, None)
    };
    let tensor = |name: &'static str, dtype, shape: &'static [usize]| (name, dtype, shape);
    let (a, b) = (tensor("a.weight", Dtype::F8_E4M3, &[2, 3]), tensor("b.weight", Dtype::F32, &[2, 3]));
    let scale = |shape: &'static [usize]| tensor("a.weight_scale", Dtype::F32, shape);
    let scales = |shape: &'static [usize]| tensor("a.weight_scales", Dtype::U8, shape);
    let weights = open(&[a, b, scale(&[2, 1]), tensor("a.input_scale", Dtype::F32, &[])]).unwrap();
    assert!(weights.remarks.is_empty(), "{:?}", weights.remarks);
    let blocks = |shape: &'static [usize]| tensor("a.weight_blocks", Dtype::U8, shape);
    for (tensors, problem) in [
        (vec![a, b], "stored as F8_E4M3, and there is no `a.weight_scale_inv`"),
        (vec![a, b, scale(&[3, 2])], "`a.weight_scale`: shape [3, 2], which is no grid of scales for [2, 3]"),
        (vec![a, b, tensor("a.weight_scale", Dtype::I64, &[1])], "`a.weight_scale`: stored as I64"),
        (vec![tensor("a.weight", Dtype::BOOL, &[2, 3]), b], "`a.weight`: stored as BOOL"),
        (vec![b, blocks(&[3, 1, 1])], "`a.weight_scales`: missing"),
        (vec![b, blocks(&[3, 1, 1]), scales(&[3])], "`a.weight_scales`: shape [3], expected [3, 1]"),
        (vec![b, blocks(&[2, 2, 1]), scales(&[2, 2])], "holds [4, 2], expected [2, 3]"),
        (vec![b, blocks(&[6]), scales(&[6])], "expected U8 [.., rows, groups, bytes]"),
    ] {
        let error = open(&tensors).unwrap_err().to_string();
        assert!(error.contains(problem), "{problem} is not in: {error}");
    }
    let words = |name: &'static str, shape: &'static [usize]| tensor(name, Dtype::I32, shape);
    let halves = |name: &'static str, shape: &'static [usize]| tensor(name, Dtype::F16, shape);
    for (tensors, problem) in [
        (vec![b, words("a.qweight", &[2])], "`a.scales`: missing"),
        (vec![b, words("a.qweight", &[2, 0]), halves("a.scales", &[0, 0])], "`a.qzeros`: missing"),
        (
            vec![b, words("a.qweight", &[2, 0]), halves("a.scales", &[0, 0]), words("a.qzeros", &[0, 0])],
            "`a.qweight`: shape [2, 0] with scales [0, 0], expected",
        ),
        (
            vec![b, words("a.qweight", &[1, 2]), halves("a.scales", &[1, 2]), words("a.qzeros", &[1, 0])],
            "`a.qweight`: integers of 0 bits, expected 2, 4 or 8",
        ),
        (
            vec![b, halves("a.qweight", &[1, 2]), halves("a.scales", &[1, 2]), words("a.qzeros", &[1, 2])],
            "`a.qweight`: stored as F16, expected words of I32",
        ),
        (
            vec![b, words("a.qweight", &[2, 1]), halves("a.scales", &[2, 8]), words("a.qzeros", &[2, 1])],
            "`a.qweight`: holds [8, 2], expected [2, 3]",
        ),
        (vec![b, words("a.weight_packed", &[2])], "`a.weight_packed`: shape [2], expected [outputs, words]"),
        (vec![b, words("a.weight_packed", &[2, 3])], "`a.weight_packed`: 3 words for 3 inputs"),
        (vec![b, words("a.weight_packed", &[2, 1])], "`a.weight_scale`: missing"),
        (vec![b, words("a.weight_packed", &[2, 1]), scale(&[3])], "`a.weight_scale`: shape [3], expected [2, groups]"),
        (
            vec![b, words("a.weight_packed", &[2, 1]), scale(&[2, 2])],
            "`a.weight_scale`: 2 groups of 3 inputs, which are not even",
        ),
        (
            vec![b, words("a.weight_packed", &[2, 1]), scale(&[2, 1]), words("a.weight_zero_point", &[2])],
            "`a.weight_zero_point`: I32 of shape [2] for scales [2, 1]",
        ),
        (
            vec![b, words("a.weight_packed", &[2, 1]), scale(&[2, 1]), words("a.weight_g_idx", &[2])],
            "`a.weight_g_idx`: I32 of shape [2], expected I32 [3]",
        ),
    ] {
        let error = open(&tensors).unwrap_err().to_string();
        assert!(error.contains(problem), "{problem} is not in: {error}");
    }
    let config = r#"{"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let error = open(&[b, words("a.SCB", &[2])]).unwrap_err().to_string();
    assert!(error.contains("`a.weight`: missing") && error.contains("quantised: `bitsandbytes`"), "{error}");
}
