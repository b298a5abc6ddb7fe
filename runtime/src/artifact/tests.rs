//! The container and the validation of manifests: round trips, damage, hostile plans, selection.

#![allow(unsafe_code, reason = "calls a kernel of the sample")]

use super::manifest::*;
use super::*;
use crate::error::RuntimeError;
use proptest::prelude::*;

fn sample() -> Vec<u8> {
    write("model: sample\n", &[sample::parts()]).unwrap()
}

#[test]
fn round_trip_is_deterministic() {
    let bytes = sample();
    assert_eq!(bytes, sample());
    let artifact = Artifact::from_bytes(bytes).unwrap();
    assert_eq!(artifact.card(), "model: sample\n");
    assert_eq!(artifact.manifests().collect::<Vec<_>>(), [&sample::manifest()]);
    let code = artifact.select(&HostFeatures::detect(), None).unwrap().load_code().unwrap();
    assert_eq!(code.n_kernels(), 1);
    assert!(code.kernel(1).is_none());
}

#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn loaded_code_runs() {
    let artifact = Artifact::from_bytes(sample()).unwrap();
    let code = artifact.select(&HostFeatures::detect(), None).unwrap().load_code().unwrap();
    drop(artifact);
    // SAFETY: the kernel is a single return instruction and reads none of its arguments.
    unsafe { code.kernel(0).unwrap()(std::ptr::null(), 0, 1, std::ptr::null_mut()) };
}

#[test]
fn tools_see_a_shared_object_with_one_symbol() {
    use object::{Object, ObjectSymbol};
    let bytes = sample();
    let file = object::File::parse(&*bytes).unwrap();
    assert_eq!(file.kind(), object::ObjectKind::Dynamic);
    let names: Vec<_> = file.dynamic_symbols().map(|symbol| symbol.name().unwrap().to_owned()).collect();
    assert_eq!(names, ["xfm_entry_table"]);
    assert!(file.imports().unwrap().is_empty());
    assert!(file.dynamic_relocations().is_none_or(|mut list| list.next().is_none()));
    assert!(file.build_id().unwrap().is_none());
}

#[test]
fn every_truncation_and_flip_is_refused() {
    let bytes = sample();
    for end in (0..bytes.len()).step_by(7) {
        assert!(Artifact::from_bytes(bytes[..end].to_vec()).is_err(), "cut at {end}");
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(Artifact::from_bytes(damaged).is_err(), "flipped at {at}");
    }
}

#[test]
fn errors_name_the_file_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.xfm");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = Artifact::open(&path).unwrap_err();
        assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        assert!(error.help().is_some_and(|help| help.contains("compile")), "{error:?}");
        error.to_string()
    };
    assert!(open(b"").contains("empty"));
    assert!(open(b"model: x").contains("is not an artifact"));
    assert!(open(&sample()[..5000]).contains("truncated or damaged"));
    let mut bytes = sample();
    let card = bytes.windows(5).position(|window| window == b"model").unwrap();
    bytes[card] = b'M';
    // The first match is the name in .dynstr, the second the card.
    assert!(open(&bytes).contains("checksum"));
    assert!(matches!(Artifact::open(&folder.path().join("none.xfm")), Err(RuntimeError::Io { .. })));
}

#[test]
fn selects_the_first_variant_that_runs() {
    let with = |name: &str, arch: &str, features: &[&str]| {
        let mut parts = sample::parts();
        parts.manifest.target =
            Target { name: name.into(), arch: arch.into(), features: features.iter().map(|&f| f.into()).collect() };
        parts
    };
    let variants =
        [with("other", "aarch64", &["neon"]), with("wide", "x86_64", &["avx2", "fma"]), with("base", "x86_64", &[])];
    let artifact = Artifact::from_bytes(write("", &variants).unwrap()).unwrap();
    let host = |features: &[&str]| HostFeatures {
        arch: "x86_64".into(),
        features: features.iter().map(|&f| f.to_owned()).collect(),
        gpu: None,
    };
    let chosen =
        |features: &[&str], wanted| artifact.select(&host(features), wanted).map(|v| v.manifest().target.name.clone());
    assert_eq!(chosen(&["avx2", "fma"], None).unwrap(), "wide");
    assert_eq!(chosen(&["avx2"], None).unwrap(), "base");
    assert_eq!(chosen(&["avx2", "fma"], Some("base")).unwrap(), "base");
    let error = chosen(&["avx2"], Some("wide")).unwrap_err();
    assert!(error.to_string().contains("wide needs fma"), "{error}");
    assert_eq!(error.exit_code(), crate::error::EXIT_UNSUPPORTED);
    assert!(chosen(&[], Some("nowhere")).unwrap_err().to_string().contains("only for other, wide, base"));
}

#[test]
fn variants_share_what_is_equal() {
    let mut other = sample::parts();
    other.manifest.target.name = "cpu:there".into();
    other.manifest.weights[0].pack = Pack::Panels { columns: 64, depth: 1 };
    other.manifest.kernels[0].scratch_bytes = 128;
    let bytes = write("model: sample\n", &[sample::parts(), other.clone()]).unwrap();
    let artifact = Artifact::from_bytes(bytes.clone()).unwrap();
    assert_eq!(artifact.manifests().collect::<Vec<_>>(), [&sample::manifest(), &other.manifest]);
    let (_, sizes) = artifact.sizes();
    assert!(sizes[1].0 * 8 < sizes[0].0, "plans and code: {sizes:?}");
    let names = |bytes: &[u8], name: &[u8]| bytes.windows(name.len()).any(|part| part == name);
    assert!(names(&bytes, b".xfm.code.0") && !names(&bytes, b".xfm.code.1"));
    let mut third = other.clone();
    third.manifest.target.name = "cpu:elsewhere".into();
    third.code.bytes[100] ^= 1;
    let three = write("", &[sample::parts(), other.clone(), third]).unwrap();
    assert!(!names(&three, b".xfm.code.1") && names(&three, b".xfm.code.2"));
    let artifact = Artifact::from_bytes(three).unwrap();
    for (index, last) in [(0, 0), (1, 0), (2, 1)] {
        assert_eq!(artifact.code(index)[100], last);
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(Artifact::from_bytes(damaged).is_err(), "flipped at {at}");
    }
}

#[test]
fn the_file_is_of_the_architecture_of_its_variants() {
    let machine = |arches: &[&str]| {
        let parts = arches.iter().map(|arch| {
            let mut parts = sample::parts();
            parts.manifest.target.arch = (*arch).into();
            parts
        });
        let bytes = write("", &parts.collect::<Vec<_>>()).unwrap();
        Artifact::from_bytes(bytes.clone()).unwrap();
        u16::from_le_bytes([bytes[18], bytes[19]])
    };
    assert_eq!(machine(&["x86_64"]), object::elf::EM_X86_64);
    assert_eq!(machine(&["aarch64", "aarch64"]), object::elf::EM_AARCH64);
    assert_eq!(machine(&["aarch64", "x86_64"]), object::elf::EM_NONE);
}

/// Changes one field of the sample so that it must be refused.
fn refused(change: impl FnOnce(&mut Manifest)) {
    let mut manifest = sample::manifest();
    validate::check(&manifest).unwrap();
    change(&mut manifest);
    validate::check(&manifest).unwrap_err();
    let parts = VariantParts { manifest, code: sample::code() };
    write("", &[parts]).unwrap_err();
}

#[test]
fn hostile_manifests_are_refused() {
    refused(|m| m.version = 99);
    refused(|m| m.axes.clear());
    refused(|m| m.inputs[0].axis = 1);
    refused(|m| m.inputs[1].name = "input_ids".into());
    refused(|m| m.inputs[0].buffer = sample::arena(1, 0, 1, 8));
    refused(|m| m.inputs[0].buffer = sample::arena(0, 60, 1, 8));
    refused(|m| m.inputs[0].buffer = BufferRef::Weight(0));
    refused(|m| m.inputs[0].default = Some(f64::NAN));
    refused(|m| m.outputs[0].dims = vec![u64::MAX, u64::MAX]);
    refused(|m| m.outputs[0].dims = vec![5]);
    refused(|m| {
        m.outputs[0].buffer = BufferRef::Arena { arena: 1, offset: 0, column: 4, row_stride: 4, element_bytes: 4 }
    });
    refused(|m| m.weights[0].shape = vec![4, 4]);
    refused(|m| m.weights[0].sources.clear());
    refused(|m| m.weights[0].sources[0].steps.push(Step::Slice { dim: 0, start: 1, len: u64::MAX }));
    refused(|m| m.weights[0].sources[0].steps.push(Step::Transpose { perm: vec![0, 0] }));
    refused(|m| m.weights[0].sources[0].steps.push(Step::Lead { dim: 1, len: u64::MAX }));
    refused(|m| m.weights[0].sources[0].steps.push(Step::Lead { dim: 7, len: 1 }));
    refused(|m| m.weights[0].sources[0].steps.push(Step::Index { dim: 7, index: 0 }));
    refused(|m| m.weights[0].sources[0].steps.push(Step::Reshape { shape: vec![5] }));
    refused(|m| m.weights[0].pack = Pack::Panels { columns: 0, depth: 1 });
    refused(|m| m.weights[0].pack = Pack::Panels { columns: u64::MAX, depth: 1 });
    refused(|m| m.caches[0].page_tokens = 0);
    refused(|m| m.caches[0].slots[0].page_bytes = 100);
    refused(|m| m.caches[0].slots[0].token_bytes = 1 << 60);
    refused(|m| m.caches[0].slots[0].alias = Some(0));
    refused(|m| m.caches[1].keep = Keep::Window(0));
    refused(|m| m.caches[0].keep = Keep::Once);
    refused(|m| m.arenas[0].bytes_per_row = u64::MAX);
    refused(|m| m.kernels[0].scratch_bytes = u64::MAX);
    refused(|m| m.kernels[0].shared_bytes = u64::MAX);
    refused(|m| m.kernels.clear());
    refused(|m| m.phases[1].max_rows = Some(1));
    refused(|m| m.phases[0].max_rows = None);
    refused(|m| m.launches[0].variants[0].kernel = 1);
    let cost = |m: &mut Manifest, change: &dyn Fn(&mut Cost)| m.launches[0].cost.iter_mut().for_each(change);
    refused(|m| cost(m, &|cost| cost.weight_bytes = 49));
    refused(|m| cost(m, &|cost| cost.row_bytes = u64::MAX));
    refused(|m| cost(m, &|cost| cost.row_flops = u64::MAX));
    refused(|m| {
        m.launches[0].operands.remove(1);
        cost(m, &|cost| (cost.weight_bytes, cost.row_weight_bytes) = (0, 1));
    });
    let attention = AttentionCost { axis: 0, window: None, future: false, key_bytes: 32, pair_flops: 1 };
    for attention in [
        AttentionCost { axis: 1, ..attention },
        AttentionCost { key_bytes: 33, ..attention },
        AttentionCost { pair_flops: u64::MAX, ..attention },
        AttentionCost { window: Some(u64::MAX), ..attention },
    ] {
        refused(|m| cost(m, &|cost| cost.attention = Some(attention)));
    }
    refused(|m| m.launches[0].variants[1].rows_per_tile = 0);
    refused(|m| m.launches[0].variants[1].tiles_per_block = 0);
    refused(|m| m.launches[0].variants.truncate(1));
    refused(|m| m.launches[0].operands[0] = sample::arena(2, 0, 1, 8));
    refused(|m| m.launches[0].operands[0] = sample::arena(0, 0, 9, 8));
    refused(|m| m.launches[0].operands[0] = sample::arena(0, 0, 1, 0));
    refused(|m| m.launches[0].operands[0] = sample::arena(0, 0, 1, u64::MAX));
    refused(|m| m.launches[0].times = 9);
    refused(|m| m.inputs[0].buffer = sample::arena(0, 0, 1, 4));
    refused(|m| m.max_positions.clear());
    refused(|m| {
        m.axes.push("source".into());
        m.extents.push(None);
        m.max_positions.push(None);
        m.launches[0].axis = 1;
    });
    refused(|m| m.launches[0].operands[0] = sample::arena(0, u64::MAX, 1, 8));
    refused(|m| m.launches[0].collective = Some(Collective::AllReduce));
    refused(|m| m.weights[0].split = Some(2));
    refused(|m| m.launches[0].operands[1] = BufferRef::Weight(1));
    refused(|m| m.launches[0].operands[2] = BufferRef::Cache { group: 1, slot: 2 });
}

#[test]
fn entries_must_lie_in_the_code() {
    let mut parts = sample::parts();
    parts.code.entries = vec![128];
    write("", &[parts.clone()]).unwrap_err();
    parts.code.entries = vec![0, 64];
    write("", &[parts]).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut elf = b"\x7fELF\x02\x01\x01\0".to_vec();
        elf.extend(&bytes);
        let _ = Artifact::from_bytes(bytes);
        let _ = Artifact::from_bytes(elf);
    }

    /// The same for what a further variant says to differ.
    #[test]
    fn arbitrary_differences_never_panic(at in 0usize..400, with in any::<u8>()) {
        let mut other = sample::manifest();
        other.target.name = "cpu:there".into();
        other.weights[0].pack = Pack::Panels { columns: 64, depth: 1 };
        other.launches[0].variants[1].tiles_per_block = 7;
        let base = container::json(&sample::manifest()).unwrap();
        let mut plan = serde_json::to_vec(&delta::between(&base, &container::json(&other).unwrap())).unwrap();
        prop_assert_eq!(&container::read_plan(&plan, &mut Some(base.clone())).unwrap(), &other);
        let at = at % plan.len();
        plan[at] = with;
        if let Ok(manifest) = container::read_plan(&plan, &mut Some(base)) {
            let _ = validate::check(&manifest);
        }
    }

    /// Damage to the structure with the checksums made to fit, as a hostile writer would.
    #[test]
    fn arbitrary_plans_never_panic(at in 0usize..2500, with in any::<u8>()) {
        let mut plan = serde_json::to_vec(&sample::manifest()).unwrap();
        let at = at % plan.len();
        plan[at] = with;
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&plan) {
            let _ = validate::check(&manifest);
        }
    }
}
