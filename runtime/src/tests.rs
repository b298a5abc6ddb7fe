//! Models, sessions and generation end to end, on a hand-made artifact whose machine code keeps token ids in its caches and sums them up.
//!
//! For a row at position `p`, the logit of token `(sum of ids 0..=p + 3 * sum of the last 5 ids) % 10` is 1, the others are 0.

#![cfg(target_arch = "x86_64")]

use crate::artifact::manifest::*;
use crate::artifact::{Artifact, CodeImage, VariantParts, sample, write};
use crate::device::null::NullDevice;
use crate::error::RuntimeError;
use crate::generate::{FinishReason, GenerateOptions};
use crate::model::{Model, ModelOptions};
use crate::session::{Session, SessionOptions};
use crate::step::{InputData, StepInput, Wanted};
use crate::text::sampler::SamplerOptions;
use crate::weights::{self, Checkpoint};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// `gcc -Os -fPIC -ffreestanding -fno-tree-loop-distribute-patterns -mno-sse -fno-stack-protector -fcf-protection=none` of this, without relocations:
///
/// ```c
/// static i64 *at(Cache *c, Buffer *b, u32 s, u32 p) {
///     u32 page = c->table[s * c->entries + p / c->page_tokens % c->entries];
///     return (i64 *)(b->data + page * 128ul) + p % c->page_tokens;
/// }
/// void keep(Args *a, u32 begin, u32 end, void *scratch) {      /* operands: ids, slot of group 0, slot of group 1 */
///     for (u32 t = begin; t < end; t++)
///         for (u32 g = 0; g < 2; g++)
///             *at(a->caches + g, a->buffers + 1 + g, a->axes->sequences[t], a->axes->positions[t]) = ((i64 *)a->buffers->data)[t];
/// }
/// void sum(Args *a, u32 begin, u32 end, void *scratch) {       /* operands: slot of group 0, slot of group 1, logits */
///     for (u32 t = begin; t < end; t++) {
///         u32 e = a->axes->rows[t], s = a->axes->sequences[e];
///         i64 total = 0;
///         for (u32 p = 0; p <= a->axes->positions[e]; p++) {
///             total += *at(a->caches, a->buffers, s, p);
///             if (p + 5 > a->axes->positions[e]) total += 3 * *at(a->caches + 1, a->buffers + 1, s, p);
///         }
///         u32 *row = (u32 *)a->buffers[2].data + t * a->buffers[2].row_stride;
///         for (u32 v = 0; v < 10; v++) row[v] = v == (u64)total % 10 ? 0x3f800000 : 0;
///     }
/// }
/// ```
const CODE: &str = "\
4989f089c889d631d2f77714448b4f104c8b17410faff189d131d241f7f18d0432418b148248c1e2044801ca498d04d0c341574189f34156415541544189d45548\
89fd534c89db49c1e302514439e37359488b45104c8b6d004f8d341bffc3488b7d18488b5008488b4010498b75204d037500468b3c1a428b14184983c3044489f9\
89542404e875ffffff4d8b36498b75404883c7188b5424044489f94c8930e85bffffff4c8930eba2585b5d415c415d415e415fc341574189f34156415541545548\
89fd534883ec18895424148b4424144139c30f83bb000000488b45104c8b750031db4531ff4c8b6d18488b5018488b4810488b4008428b149a448b2490498b068b\
3c914889442408498d4518897c2410488904248b542410488b74240889d94c89efe8d6feffff4c03388d43054139c4731a498b76208b54241089d9488b3c24e8b8\
feffff486b00034901c7ffc34139dc73c1498b4e504c89f8bb0a00000031d248f7f3498b4640490fafcb488d0c8831c031f6bf0000803f4839c20f44f789348148\
ffc04883f80a75e749ffc3e938ffffff4883c4185b5d415c415d415e415fc3";
const KEEP: u64 = 0x31;
const SUM: u64 = 0xb6;

pub(crate) fn artifact() -> Artifact {
    let mut manifest = sample::manifest();
    manifest.outputs[0].dims = vec![10];
    manifest.outputs[0].buffer = sample::arena(1, 0, 10, 4);
    manifest.arenas[1].bytes_per_row = 40;
    let kernel = |name: &str| Kernel { name: name.into(), scratch_bytes: 0, shared_bytes: 0, waits: false };
    manifest.kernels = vec![kernel("keep"), kernel("sum")];
    let variants = |kernel| {
        let variant = |rows_per_tile| Variant { kernel, rows_per_tile, tiles_per_block: 1, multiplies: None };
        vec![variant(1), variant(1)]
    };
    let slot = |group| BufferRef::Cache { group, slot: 1 };
    let launch = |name: &str, rows, kernel, operands| Launch {
        name: name.into(),
        axis: 0,
        rows,
        times: 1,
        variants: variants(kernel),
        operands,
        when: None,
        collective: None,
        cost: None,
    };
    manifest.launches = vec![
        launch("keep", false, 0, vec![sample::arena(0, 0, 1, 8), slot(0), slot(1)]),
        launch("sum", true, 1, vec![slot(0), slot(1), sample::arena(1, 0, 10, 4)]),
    ];
    let bytes = (0..CODE.len()).step_by(2).map(|at| u8::from_str_radix(&CODE[at..at + 2], 16).unwrap()).collect();
    let parts = VariantParts { manifest, code: CodeImage { bytes, entries: vec![KEEP, SUM] } };
    Artifact::from_bytes(write("", &[parts]).unwrap()).unwrap()
}

fn session(threads: usize, options: SessionOptions) -> Session {
    let options_of_model = ModelOptions { threads: Some(threads), ..ModelOptions::default() };
    Model::load(&artifact(), &Checkpoint::random(0), &options_of_model).unwrap().session(&options).unwrap()
}

fn small() -> SessionOptions {
    SessionOptions { max_sequences: 4, step_tokens: 6, ..SessionOptions::default() }
}

/// What the model says after `ids`.
pub(crate) fn expected(ids: &[i64]) -> i64 {
    let window = &ids[ids.len().saturating_sub(5)..];
    (ids.iter().sum::<i64>() + 3 * window.iter().sum::<i64>()) % 10
}

fn tokens(sequence: crate::cache::SequenceId, ids: &[i64], wanted: Wanted) -> StepInput {
    StepInput { sequence, inputs: vec![("input_ids".into(), InputData::Ints(ids.to_vec()))], wanted }
}

fn best(row: &[f32]) -> i64 {
    row.iter().position(|&logit| logit == 1.0).unwrap() as i64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several sequences, in ragged steps, forked and cut: each says what it would say alone.
    #[test]
    fn ragged_steps_agree_with_each_sequence_alone(
        actions in proptest::collection::vec((0usize..5, proptest::collection::vec((0usize..3, proptest::collection::vec(0i64..10, 1..4)), 1..3)), 1..12),
        threads in 1usize..3,
    ) {
        let mut session = session(threads, small());
        let mut sequences: Vec<_> = (0..3).map(|_| (session.add_sequence().unwrap(), Vec::<i64>::new())).collect();
        for (action, mut parts) in actions {
            parts.sort();
            parts.dedup_by_key(|part| part.0);
            match action {
                0 => {
                    let (from, to) = (parts[0].0, (parts[0].0 + 1) % 3);
                    session.free(sequences[to].0).unwrap();
                    sequences[to] = (session.fork(sequences[from].0).unwrap(), sequences[from].1.clone());
                }
                1 => {
                    let (id, ids) = &mut sequences[parts[0].0];
                    let to = ids.len().saturating_sub(parts[0].1.len());
                    if session.truncate(*id, to as u64).is_ok() {
                        ids.truncate(to);
                    }
                }
                _ => {
                    let step: Vec<_> = parts.iter().map(|(i, ids)| tokens(sequences[*i].0, ids, Wanted::All)).collect();
                    let outputs = session.step(&step).unwrap();
                    let logits = outputs.get("logits").unwrap();
                    for (index, (i, ids)) in parts.iter().enumerate() {
                        let rows = logits.rows_of(index).unwrap();
                        for (id, row) in ids.iter().zip(rows.chunks(10)) {
                            sequences[*i].1.push(*id);
                            prop_assert_eq!(best(row), expected(&sequences[*i].1));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn pieces_give_the_same_as_the_whole() {
    let ids: Vec<i64> = (0..31).map(|i| i * 7 % 10).collect();
    let run = |step_tokens, wanted: Wanted| {
        let mut session = session(2, SessionOptions { step_tokens, ..SessionOptions::default() });
        let sequence = session.add_sequence().unwrap();
        session.step_in_pieces(&tokens(sequence, &ids, wanted)).unwrap().outputs.remove(0)
    };
    let whole = run(31, Wanted::All);
    assert_eq!(whole.data.len(), 310);
    assert_eq!(run(4, Wanted::All), whole);
    assert_eq!(best(run(4, Wanted::Last).row(0).unwrap()), expected(&ids));
    let some = run(4, Wanted::List(vec![2, 30]));
    assert_eq!((best(some.row(0).unwrap()), best(some.row(1).unwrap())), (expected(&ids[..3]), expected(&ids)));
    assert_eq!(run(4, Wanted::None).data, Vec::<f32>::new());
}

#[test]
fn generates_until_something_ends_it() {
    let mut prompt = vec![3i64, 1, 4];
    let mut session = session(2, small());
    let mut run = |options: GenerateOptions| {
        let sequence = session.add_sequence().unwrap();
        let mut tokens = session.generate(sequence, &[3, 1, 4], options).unwrap();
        let ids: Vec<u32> = tokens.by_ref().map(Result::unwrap).collect();
        let reason = tokens.finish_reason().unwrap();
        session.free(sequence).unwrap();
        (ids, reason)
    };
    let (ids, reason) = run(GenerateOptions { max_tokens: Some(9), ..GenerateOptions::default() });
    assert_eq!((ids.len(), reason), (9, FinishReason::Length));
    for &id in &ids {
        assert_eq!(i64::from(id), expected(&prompt));
        prompt.push(id.into());
    }
    // 40 positions: the last token is made but cannot be read again.
    let (all, reason) = run(GenerateOptions::default());
    assert_eq!((all.len(), reason), (38, FinishReason::Context));
    let stop = all.iter().find(|&&id| id != all[0]).copied().unwrap();
    let (before, reason) = run(GenerateOptions { stop_ids: vec![stop], ..GenerateOptions::default() });
    assert_eq!(
        (before.as_slice(), reason),
        (&all[..all.iter().position(|&id| id == stop).unwrap()], FinishReason::Stop)
    );
    let cancel = Some(Arc::new(AtomicBool::new(true)));
    assert_eq!(run(GenerateOptions { cancel, ..GenerateOptions::default() }), (vec![], FinishReason::Cancelled));
    let warm = |seed| SamplerOptions { temperature: 5.0, seed, ..SamplerOptions::default() };
    let mut sampled =
        |seed| run(GenerateOptions { max_tokens: Some(20), sampler: warm(seed), ..GenerateOptions::default() }).0;
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
}

#[test]
fn wrong_requests_are_explained_and_change_nothing() {
    let mut session = session(1, small());
    let id = session.add_sequence().unwrap();
    session.step(&[tokens(id, &[1, 2], Wanted::Last)]).unwrap();
    let ints = |name: &str, values: &[i64]| (name.to_owned(), InputData::Ints(values.to_vec()));
    let with = |inputs| StepInput { sequence: id, inputs, wanted: Wanted::Last };
    for (input, problem) in [
        (tokens(id, &[], Wanted::Last), "without tokens"),
        (tokens(id, &[1, 10], Wanted::Last), "input_ids[1] is 10, expected 0 to 9"),
        (tokens(id, &[-1], Wanted::Last), "input_ids[0] is -1, expected 0 to 9"),
        (tokens(id, &[1; 7], Wanted::Last), "the step has 7 tokens, the session takes 6"),
        (tokens(id, &[1], Wanted::List(vec![1])), "not ascending and below 1"),
        (with(vec![]), "input `input_ids` is missing"),
        (with(vec![ints("ids", &[1])]), "no input `ids`"),
        (with(vec![ints("input_ids", &[1]), ints("input_ids", &[1])]), "given twice"),
        (
            with(vec![ints("input_ids", &[1]), ints("kinds", &[1, 1])]),
            "input `kinds` has 2 tokens, input `input_ids` has 1",
        ),
        (with(vec![ints("input_ids", &[1]), ints("kinds", &[2])]), "expected 0 to 1"),
        (with(vec![("input_ids".to_owned(), InputData::Floats(vec![1.0]))]), "other values were given"),
    ] {
        let error = session.step(&[input]).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
        assert!(error.help().is_some());
        assert_eq!(session.length(id).unwrap(), 2);
    }
    assert!(session.step(&[]).is_err());
    let long = tokens(id, &[1; 39], Wanted::Last);
    assert!(session.step_in_pieces(&long).unwrap_err().to_string().contains("room for 38"));
    assert!(session.generate(id, &[], GenerateOptions::default()).is_err());
    let too_much = SessionOptions { context_tokens: Some(41), ..small() };
    assert!(session.model().session(&too_much).unwrap_err().to_string().contains("the model has 40"));
}

#[test]
fn whole_sequences_are_taken_whole_and_forgotten() {
    let mut manifest = sample::manifest();
    manifest.whole_sequences = true;
    manifest.caches.drain(..2);
    manifest.launches[0].operands.pop();
    let device = Arc::new(NullDevice::default());
    let packed = weights::bind(&manifest, &Checkpoint::random(0), 1, None).unwrap();
    let model = Model::on_device(Arc::new(manifest), Arc::clone(&device) as _, packed).unwrap();
    let mut session = model.session(&SessionOptions { step_tokens: 3, ..SessionOptions::default() }).unwrap();
    let id = session.add_sequence().unwrap();
    // More than a step was made for: the session makes room.
    for n in [2, 17] {
        let outputs = session.step(&[tokens(id, &vec![1; n], Wanted::All)]).unwrap();
        assert_eq!(outputs.outputs[0].data.len(), 4 * n);
        assert_eq!((session.length(id).unwrap(), session.cache().live_bytes()), (0, 0));
    }
    let steps = device.steps();
    assert_eq!((steps[1].sizes.as_slice(), steps[1].launches[0].tiles), ([17, 17].as_slice(), 27));
    assert!(session.step(&[tokens(id, &[1; 41], Wanted::All)]).unwrap_err().to_string().contains("41 positions"));
    assert!(session.generate(id, &[1], GenerateOptions::default()).unwrap_err().to_string().contains("as a whole"));
}

#[test]
fn each_axis_has_its_own_limits() {
    let mut manifest = sample::manifest();
    for (name, extent) in [("patches", Some(60)), ("source", None)] {
        let axis = manifest.axes.len();
        manifest.axes.push(name.into());
        manifest.extents.push(extent);
        manifest.max_positions.push(None);
        manifest.arenas.push(Arena { axis, rows: false, bytes_per_row: 64 });
        let buffer = sample::arena(manifest.arenas.len() - 1, 0, 1, 8);
        manifest.inputs.push(Input { name: name.into(), axis, buffer, ..manifest.inputs[0].clone() });
        let mut group = manifest.caches[0].clone();
        (group.axis, group.keep) = (axis, Keep::Once);
        manifest.caches.push(group);
    }
    crate::artifact::validate::check(&manifest).unwrap();
    let packed = weights::bind(&manifest, &Checkpoint::random(0), 1, None).unwrap();
    let model = Model::on_device(Arc::new(manifest), Arc::new(NullDevice::default()), packed).unwrap();
    let options =
        SessionOptions { max_sequences: 2, once_tokens: Some(70), step_tokens: 4, ..SessionOptions::default() };
    let mut session = model.session(&options).unwrap();
    assert_eq!((session.context_tokens(), session.step_tokens()), (40, 4));
    let id = session.add_sequence().unwrap();
    let input = |patches, source| {
        let ints = |name: &str, n| (name.to_owned(), InputData::Ints(vec![1; n]));
        let inputs = vec![ints("input_ids", 3), ints("patches", patches), ints("source", source)];
        StepInput { sequence: id, inputs, wanted: Wanted::Last }
    };
    for (patches, source, problem) in
        [(60, 71, "71 source, there is room for 70"), (61, 1, "61 patches, a sequence has 60")]
    {
        let error = session.step(&[input(patches, source)]).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    // More patches and more of a source than the context has positions, and a step tokens.
    session.step(&[input(60, 70)]).unwrap();
    session.step_in_pieces(&tokens(id, &[1; 37], Wanted::Last)).unwrap();
    assert_eq!(session.lengths(id).unwrap(), [40, 60, 70]);
    assert!(session.step(&[tokens(id, &[1], Wanted::Last)]).unwrap_err().to_string().contains("41 positions"));
}

#[test]
fn models_and_sessions_may_move_between_threads() {
    fn assert<T: Send + Sync>() {}
    assert::<Model>();
    assert::<Session>();
    assert::<RuntimeError>();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever validation lets through can be loaded and stepped without a panic.
    #[test]
    fn valid_manifests_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..10), 1..4), n in 1usize..8) {
        let mut plan = serde_json::to_vec(&sample::manifest()).unwrap();
        let digits: Vec<usize> = (0..plan.len()).filter(|&at| plan[at].is_ascii_digit()).collect();
        for (index, digit) in changes {
            plan[digits[index.index(digits.len())]] = b'0' + digit;
        }
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&plan) else { return Ok(()) };
        if crate::artifact::validate::check(&manifest).is_err() {
            return Ok(());
        }
        let packed = weights::bind(&manifest, &Checkpoint::random(0), 1, None).unwrap();
        let device = Arc::new(NullDevice::default());
        let model = Model::on_device(Arc::new(manifest), device, packed).unwrap();
        let Ok(mut session) = model.session(&small()) else { return Ok(()) };
        let (one, two) = (session.add_sequence().unwrap(), session.add_sequence().unwrap());
        for _ in 0..5 {
            let _ = session.step(&[tokens(one, &vec![0; n], Wanted::All), tokens(two, &[0], Wanted::Last)]);
            let _ = session.fork(one).map(|copy| session.free(copy));
            let _ = session.truncate(two, 1);
            let _ = session.step_in_pieces(&tokens(one, &vec![0; n * 2], Wanted::Last));
        }
    }
}
