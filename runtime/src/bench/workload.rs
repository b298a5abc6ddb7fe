//! What is timed: prompts of some length, or tokens one after another, for several sequences at once.
//!
//! Given a model and a [`Test`], promises steps over made-up tokens, the same for every run, and what they have to do at least. Only the steps
//! are timed: sequences, inputs and what lies before them are made beforehand.

use crate::artifact::manifest::{Input, Manifest};
use crate::cache::SequenceId;
use crate::cost::{AxisShape, StepShape, Work};
use crate::error::{Result, RuntimeError};
use crate::memory;
use crate::model::Model;
use crate::session::{Session, SessionOptions};
use crate::step::{InputData, StepInput, StepOutputs, Wanted};
use std::sync::Arc;
use std::time::Instant;

/// Elements of a source (of a translation) while tokens are generated from it.
const SOURCE_ELEMENTS: u64 = 128;

/// Most positions of a timed sequence.
const MOST_POSITIONS: u64 = 1 << 25;
/// Most tokens that are generated one after another.
const MOST_STEPS: u64 = 1 << 20;

/// What is done with the tokens of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of them at once, in as few steps as their size allows; outputs of the last one.
    Prompt,
    /// One after another, with outputs of each.
    Generate,
}

/// One thing to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// What is done.
    pub kind: Kind,
    /// Tokens of each sequence.
    pub tokens: u64,
    /// Tokens that each sequence has before.
    pub depth: u64,
    /// Sequences.
    pub batch: u32,
}

/// How sequences are given the elements of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AxisKind {
    /// As many as wanted, in any number of steps.
    Growing,
    /// Once, as many as wanted: a source.
    Once,
    /// So many, no more and no fewer, with its first step: an image.
    Fixed(u64),
}

impl AxisKind {
    /// Elements that a sequence has of an axis that does not grow, beside so many `tokens`.
    fn beside(self, tokens: u64) -> u64 {
        match self {
            Self::Growing => tokens,
            Self::Once => SOURCE_ELEMENTS,
            Self::Fixed(n) => n,
        }
    }

    /// The axes of a model. What is long in it is the prompt: its source, if it has one, or else its first axis.
    pub fn of(manifest: &Manifest) -> Vec<Self> {
        let kind = |(axis, extent): (usize, &Option<u64>)| match extent {
            Some(n) => Self::Fixed(*n),
            None if axis == 0 => Self::Growing,
            None => Self::Once,
        };
        manifest.extents.iter().enumerate().map(kind).collect()
    }
}

/// One step of a test: all sequences take part alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStep {
    /// For each axis, elements before it.
    pub before: Vec<u64>,
    /// For each axis, elements that it adds to each sequence.
    pub new: Vec<u64>,
    /// Whether outputs of the last token are wanted.
    pub wanted: bool,
}

impl PlannedStep {
    /// `new` tokens after `before`; the `first` step of a sequence brings what it has a known number of.
    fn of_tokens(axes: &[AxisKind], (before, new): (u64, u64), first: bool, wanted: bool) -> Self {
        let of = |(i, axis): (usize, &AxisKind)| match axis {
            _ if i == 0 => (before, new),
            AxisKind::Fixed(n) if first => (0, *n),
            AxisKind::Growing => (0, new),
            axis => (axis.beside(new), 0),
        };
        let (before, new) = axes.iter().enumerate().map(of).unzip();
        Self { before, new, wanted }
    }
}

impl Test {
    /// `pp512`, `tg128`, `tg128 @ d4096`.
    pub fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Prompt => "pp",
            Kind::Generate => "tg",
        };
        let depth = if self.depth > 0 { format!(" @ d{}", self.depth) } else { String::new() };
        format!("{kind}{}{depth}", self.tokens)
    }

    /// Tokens of a run, over all sequences.
    pub fn total_tokens(&self) -> u64 {
        self.tokens * u64::from(self.batch)
    }

    /// Refuses what the model cannot do.
    ///
    /// # Errors
    /// The model has fewer positions, or takes sequences only whole.
    pub fn check(&self, manifest: &Manifest) -> Result<()> {
        let test = self.on(&AxisKind::of(manifest));
        if manifest.whole_sequences && (test.kind == Kind::Generate || test.depth > 0) {
            return Err(RuntimeError::request(
                format!("{}: the model takes whole sequences and keeps nothing", test.name()),
                "time prompts alone: `-n 0`, without `-d`",
            ));
        }
        let positions = test.depth.saturating_add(test.tokens);
        let generates = test.kind == Kind::Generate && test.tokens > MOST_STEPS;
        if positions > MOST_POSITIONS || generates {
            let limit = if generates { MOST_STEPS } else { MOST_POSITIONS };
            return Err(RuntimeError::request(
                format!("{} is more than can be timed", test.name()),
                format!(
                    "time at most {limit} {}",
                    if generates { "generated tokens (`-n`)" } else { "tokens (`-p`, `-d`)" }
                ),
            ));
        }
        match manifest.most_elements(0) {
            Some(most) if positions > most => Err(RuntimeError::request(
                format!("{} needs {positions} positions, the model has {most}", test.name()),
                "time fewer tokens (`-p`, `-n`, `-d`)",
            )),
            _ => Ok(()),
        }
    }

    /// The test as a model with these axes takes it: a prompt is as long as what it is made of.
    pub fn on(&self, axes: &[AxisKind]) -> Self {
        match axes.first() {
            Some(AxisKind::Fixed(n)) if self.kind == Kind::Prompt => Self { tokens: *n, ..*self },
            _ => *self,
        }
    }

    /// What is done before anything is timed: sources, and the tokens of the test's depth.
    pub fn preparation(&self, axes: &[AxisKind], step_tokens: u64) -> Vec<PlannedStep> {
        let mut steps = Vec::new();
        let source = axes.contains(&AxisKind::Once);
        // A prompt's source is what is timed.
        if source && (self.kind == Kind::Generate || self.depth > 0) {
            let new = axes.iter().enumerate().map(|(i, axis)| if i == 0 { 0 } else { axis.beside(0) }).collect();
            steps.push(PlannedStep { before: vec![0; axes.len()], new, wanted: false });
        }
        let piece = (step_tokens / u64::from(self.batch)).max(1);
        for at in (0..self.depth).step_by(piece as usize) {
            let first = steps.is_empty();
            steps.push(PlannedStep::of_tokens(axes, (at, piece.min(self.depth - at)), first, false));
        }
        steps
    }

    /// Its steps, of at most `step_tokens` tokens over all sequences; one step where sequences are taken `whole`.
    pub fn steps(&self, axes: &[AxisKind], step_tokens: u64, whole: bool) -> Vec<PlannedStep> {
        let source = axes.contains(&AxisKind::Once);
        let prepared = source && (self.kind == Kind::Generate || self.depth > 0);
        if source && !prepared {
            // The whole source and the first token after it.
            let new = axes.iter().map(|axis| match axis {
                AxisKind::Growing => 1,
                AxisKind::Once => self.tokens,
                AxisKind::Fixed(n) => *n,
            });
            return vec![PlannedStep { before: vec![0; axes.len()], new: new.collect(), wanted: true }];
        }
        let piece = match self.kind {
            Kind::Generate => 1,
            Kind::Prompt if whole => self.tokens,
            Kind::Prompt => (step_tokens / u64::from(self.batch)).clamp(1, self.tokens.max(1)),
        };
        let step = |at: u64| {
            let tokens = piece.min(self.tokens - at);
            let wanted = self.kind == Kind::Generate || at + tokens == self.tokens;
            PlannedStep::of_tokens(axes, (self.depth + at, tokens), at == 0 && self.depth == 0 && !prepared, wanted)
        };
        (0..self.tokens).step_by(piece.max(1) as usize).map(step).collect()
    }

    /// The session that its steps need, of at most `step_tokens` tokens.
    pub fn session(&self, manifest: &Manifest, step_tokens: u64) -> SessionOptions {
        let axes = AxisKind::of(manifest);
        let test = self.on(&axes);
        let preparation = test.preparation(&axes, step_tokens);
        let steps = test.steps(&axes, step_tokens, manifest.whole_sequences);
        let all = || preparation.iter().chain(&steps);
        let most = |elements: &dyn Fn(&PlannedStep) -> u64| all().map(elements).max().unwrap_or(1).max(1);
        let after = |axes: std::ops::Range<usize>| {
            most(&|step| {
                step.before[axes.clone()].iter().zip(&step.new[axes.clone()]).map(|(b, n)| b + n).max().unwrap_or(1)
            })
        };
        SessionOptions {
            // Those that were prepared stay beside those that a run makes of them.
            max_sequences: if preparation.is_empty() { test.batch } else { test.batch.saturating_mul(2) },
            context_tokens: Some(after(0..1)),
            once_tokens: Some(after(1..axes.len())),
            step_tokens: most(&|step| step.new.iter().copied().max().unwrap_or(1)).saturating_mul(test.batch.into()),
            pool_tokens: None,
        }
    }

    /// What `steps` have to read and multiply.
    pub fn work(&self, manifest: &Manifest, steps: &[PlannedStep]) -> Work {
        let mut total = Work::default();
        let sequences = u64::from(self.batch);
        for step in steps {
            let axis = |(i, (&before, &new)): (usize, (&u64, &u64))| AxisShape {
                sequences: vec![(before, new); self.batch as usize],
                selected: match i {
                    0 if step.wanted => sequences,
                    0 => 0,
                    _ => sequences * new,
                },
            };
            let axes = step.before.iter().zip(&step.new).enumerate().map(axis).collect();
            total.add(&StepShape { axes }.work(manifest));
        }
        total
    }
}

/// A test that is ready to run on a model.
#[derive(Debug)]
pub struct Workload {
    session: Session,
    test: Test,
    steps: Vec<PlannedStep>,
    /// Sequences that were prepared, forked for each run.
    base: Vec<SequenceId>,
    /// Of the last step.
    outputs: StepOutputs,
}

impl Workload {
    /// Makes room, and fills the sequences up to the test's depth.
    ///
    /// # Errors
    /// The model has fewer positions, takes sequences only whole, or there is no memory.
    pub fn new(model: &Arc<Model>, test: Test, step_tokens: u64) -> Result<Self> {
        let manifest = model.manifest();
        test.check(manifest)?;
        let axes = AxisKind::of(manifest);
        let options = test.session(manifest, step_tokens);
        let test = test.on(&axes);
        let preparation = test.preparation(&axes, step_tokens);
        let steps = test.steps(&axes, step_tokens, manifest.whole_sequences);
        // A device that does not take memory when it is used makes sure of it by itself.
        if model.device().room()?.is_none() {
            let longest = options.context_tokens.max(options.once_tokens).unwrap_or(1);
            let tokens = longest.saturating_mul(test.batch.into());
            memory::ensure(
                &format!("timing {}", test.name()),
                session_bytes(manifest, test.batch.into(), tokens, options.step_tokens),
            )?;
        }
        let outputs = StepOutputs::default();
        let mut workload = Self { session: model.session(&options)?, test, steps, base: Vec::new(), outputs };
        if !preparation.is_empty() {
            workload.base = workload.add()?;
            for step in &preparation {
                let inputs = workload.inputs(&workload.base, step);
                workload.session.step(&inputs)?;
            }
        }
        Ok(workload)
    }

    /// The test as the model takes it.
    pub fn test(&self) -> Test {
        self.test
    }

    /// What one run has to do.
    pub fn work(&self) -> Work {
        self.test.work(self.session.model().manifest(), &self.steps)
    }

    /// Runs the first `most_steps` steps, or all; seconds.
    ///
    /// # Errors
    /// A step failed.
    pub fn run(&mut self, most_steps: Option<usize>) -> Result<f64> {
        let sequences = match self.base.is_empty() {
            true => self.add()?,
            false => self.base.clone().into_iter().map(|base| self.session.fork(base)).collect::<Result<Vec<_>>>()?,
        };
        let steps = self.steps.iter().take(most_steps.unwrap_or(usize::MAX));
        let inputs: Vec<Vec<StepInput>> = steps.map(|step| self.inputs(&sequences, step)).collect();
        let begin = Instant::now();
        for inputs in &inputs {
            self.session.step_into(inputs, &mut self.outputs)?;
        }
        self.session.model().device().wait()?;
        let seconds = begin.elapsed().as_secs_f64();
        for sequence in sequences {
            self.session.free(sequence)?;
        }
        Ok(seconds)
    }

    fn add(&mut self) -> Result<Vec<SequenceId>> {
        (0..self.test.batch).map(|_| self.session.add_sequence()).collect()
    }

    fn inputs(&self, sequences: &[SequenceId], step: &PlannedStep) -> Vec<StepInput> {
        let manifest = self.session.model().manifest();
        let wanted = if step.wanted { Wanted::Last } else { Wanted::None };
        let of = |(s, sequence): (usize, &SequenceId)| {
            let given = manifest.inputs.iter().filter(|input| input.default.is_none());
            let inputs = given.filter_map(|input| {
                let (before, new) = (*step.before.get(input.axis)?, *step.new.get(input.axis)?);
                (new > 0).then(|| (input.name.clone(), made_up(input, s as u64, before, new)))
            });
            StepInput { sequence: *sequence, inputs: inputs.collect(), wanted: wanted.clone() }
        };
        sequences.iter().enumerate().map(of).collect()
    }
}

/// Values for `n` elements from position `before` on of sequence `s`: they follow from where they are.
fn made_up(input: &Input, s: u64, before: u64, n: u64) -> InputData {
    let width = input.width();
    InputData::made_up(input, n, |i| {
        let z = (s << 40 ^ (before * width + i)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 32)
    })
}

/// Bytes that a session of so many sequences touches, about: working memory of its steps, and the pages of `tokens` positions in all.
fn session_bytes(manifest: &Manifest, sequences: u64, tokens: u64, step_tokens: u64) -> u64 {
    let arenas = manifest.arenas.iter().map(|arena| {
        let rows = match manifest.extents[arena.axis] {
            Some(extent) => sequences.saturating_mul(extent),
            None if arena.rows && arena.axis == 0 => sequences,
            None => step_tokens,
        };
        arena.bytes_per_row.saturating_mul(rows)
    });
    let kept = manifest.caches.iter().flat_map(|group| {
        let pages = tokens.div_ceil(group.page_tokens);
        group.slots.iter().map(move |slot| if slot.alias.is_some() { 0 } else { slot.page_bytes.saturating_mul(pages) })
    });
    arenas.chain(kept).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::manifest::DType;
    use crate::artifact::sample;

    fn test(kind: Kind, tokens: u64, depth: u64, batch: u32) -> Test {
        Test { kind, tokens, depth, batch }
    }

    const TOKENS: [AxisKind; 1] = [AxisKind::Growing];

    #[test]
    fn prompts_are_cut_and_tokens_come_one_by_one() {
        let prompt = test(Kind::Prompt, 10, 3, 2);
        assert_eq!((prompt.name().as_str(), prompt.total_tokens()), ("pp10 @ d3", 20));
        let planned =
            |steps: Vec<PlannedStep>| steps.iter().map(|s| (s.before[0], s.new[0], s.wanted)).collect::<Vec<_>>();
        assert_eq!(planned(prompt.preparation(&TOKENS, 4)), [(0, 2, false), (2, 1, false)]);
        assert_eq!(planned(prompt.steps(&TOKENS, 8, false)), [(3, 4, false), (7, 4, false), (11, 2, true)]);
        assert_eq!(planned(prompt.steps(&TOKENS, 8, true)), [(3, 10, true)]);
        assert_eq!(planned(prompt.steps(&TOKENS, 1, false)).len(), 10);
        let generate = test(Kind::Generate, 3, 0, 4);
        assert_eq!(generate.name(), "tg3");
        assert_eq!(planned(generate.steps(&TOKENS, 512, false)), [(0, 1, true), (1, 1, true), (2, 1, true)]);
        assert_eq!(generate.preparation(&TOKENS, 512), []);
        assert_eq!(test(Kind::Prompt, 0, 0, 1).steps(&TOKENS, 512, false), []);
    }

    #[test]
    fn sources_are_prompts_and_images_are_whole() {
        let axes = [AxisKind::Growing, AxisKind::Once];
        let step =
            |before: [u64; 2], new: [u64; 2], wanted| PlannedStep { before: before.into(), new: new.into(), wanted };
        let prompt = test(Kind::Prompt, 300, 0, 1);
        assert_eq!(
            (prompt.preparation(&axes, 64), prompt.steps(&axes, 64, false)),
            (vec![], vec![step([0, 0], [1, 300], true)])
        );
        let generate = test(Kind::Generate, 2, 5, 1);
        let source = SOURCE_ELEMENTS;
        assert_eq!(
            generate.preparation(&axes, 64),
            [step([0, 0], [0, source], false), step([0, source], [5, 0], false)]
        );
        assert_eq!(
            generate.steps(&axes, 64, false),
            [step([5, source], [1, 0], true), step([6, source], [1, 0], true)]
        );
        // An image beside tokens comes with the first of them.
        let beside = [AxisKind::Growing, AxisKind::Fixed(6)];
        assert_eq!(
            test(Kind::Prompt, 5, 0, 1).steps(&beside, 3, false),
            [step([0, 0], [3, 6], false), step([3, 6], [2, 0], true)]
        );
        let deep = test(Kind::Generate, 2, 5, 1);
        assert_eq!(deep.preparation(&beside, 3), [step([0, 0], [3, 6], false), step([3, 6], [2, 0], false)]);
        assert_eq!(deep.steps(&beside, 3, false), [step([5, 6], [1, 0], true), step([6, 6], [1, 0], true)]);
        let image = [AxisKind::Fixed(197), AxisKind::Fixed(1)];
        let prompt = test(Kind::Prompt, 512, 0, 1).on(&image);
        assert_eq!(
            (prompt.name().as_str(), prompt.steps(&image, 64, true)),
            ("pp197", vec![step([0, 0], [197, 1], true)])
        );
    }

    #[test]
    fn what_a_model_cannot_do_is_refused() {
        let mut manifest = sample::manifest();
        let problem = |test: Test, manifest: &Manifest| test.check(manifest).err().map(|error| error.to_string());
        assert_eq!(problem(test(Kind::Generate, 10, 30, 1), &manifest), None);
        let too_long = problem(test(Kind::Prompt, 11, 30, 1), &manifest);
        assert_eq!(too_long.as_deref(), Some("pp11 @ d30 needs 41 positions, the model has 40"));
        manifest.max_positions = vec![None];
        for huge in [
            test(Kind::Prompt, u64::MAX, 0, 1),
            test(Kind::Prompt, 1, u64::MAX, 1),
            test(Kind::Generate, 1 << 21, 0, u32::MAX),
        ] {
            assert!(problem(huge, &manifest).is_some_and(|problem| problem.contains("more than can be timed")));
        }
        manifest.whole_sequences = true;
        assert_eq!(problem(test(Kind::Prompt, 40, 0, 1), &manifest), None);
        for refused in [test(Kind::Prompt, 4, 1, 1), test(Kind::Generate, 4, 0, 1)] {
            assert!(problem(refused, &manifest).is_some_and(|problem| problem.contains("whole sequences")));
        }
    }

    #[test]
    fn work_is_that_of_all_steps() {
        let manifest = sample::manifest();
        let generate = test(Kind::Generate, 3, 0, 4);
        let work = generate.work(&manifest, &generate.steps(&TOKENS, 512, false));
        assert_eq!((work.weight_bytes, work.value_bytes, work.f32_flops), (3 * 48, 12 * 8, 12 * 24));
        let prompt = test(Kind::Prompt, 3, 0, 4);
        let work = prompt.work(&manifest, &prompt.steps(&TOKENS, 512, false));
        assert_eq!((work.weight_bytes, work.f32_flops), (48, 12 * 24));
    }

    #[test]
    fn made_up_values_fit_their_input() {
        let mut input = sample::manifest().inputs[0].clone();
        let InputData::Ints(values) = made_up(&input, 1, 5, 1000) else { panic!("integers are wanted") };
        assert!(values.iter().all(|v| (0..10).contains(v)) && (0..10).all(|v| values.contains(&v)));
        assert_eq!(made_up(&input, 1, 7, 3), InputData::Ints(values[2..5].to_vec()));
        input.dtype = DType::F32;
        input.dims = vec![3];
        let InputData::Floats(values) = made_up(&input, 0, 0, 100) else { panic!("floats are wanted") };
        assert!(values.len() == 300 && values.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(values.iter().any(|v| *v < -0.5) && values.iter().any(|v| *v > 0.5));
    }
}
