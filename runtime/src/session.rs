//! A session: sequences with their caches, and one step over a ragged batch of them.
//!
//! A step is checked before anything changes; when a device fails in the middle, the sequences are as they were before it.

use crate::artifact::manifest::Manifest;
use crate::cache::{Append, AxisLimit, BlockTable, CacheOptions, CacheStore, SequenceId};
use crate::device::AxisStep;
use crate::device::workspace::Workspace;
use crate::error::{Result, RuntimeError};
use crate::model::Model;
use crate::step::{self, StepInput, StepOutput, StepOutputs, Wanted};
use std::sync::Arc;

/// Positions of a sequence where neither the caller nor the model says.
pub const DEFAULT_CONTEXT_TOKENS: u64 = 4096;
/// Tokens of a step where the caller does not say.
pub const DEFAULT_STEP_TOKENS: u64 = 512;

/// What a session is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Most sequences at a time.
    pub max_sequences: u32,
    /// Most positions of a sequence; `None`: what the model allows, at most [`DEFAULT_CONTEXT_TOKENS`].
    pub context_tokens: Option<u64>,
    /// Most elements of an axis that a sequence is given once, such as a source, where their number is not known; `None`: as `context_tokens`.
    pub once_tokens: Option<u64>,
    /// Most tokens of a step, over all sequences.
    pub step_tokens: u64,
    /// Positions that all sequences together may hold, where that is less than `max_sequences * context_tokens`.
    pub pool_tokens: Option<u64>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            max_sequences: 1,
            context_tokens: None,
            once_tokens: None,
            step_tokens: DEFAULT_STEP_TOKENS,
            pool_tokens: None,
        }
    }
}

/// Sequences of one model and the memory they need.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    cache: CacheStore,
    workspace: Workspace,
}

impl Session {
    pub(crate) fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let manifest = model.manifest();
        let max_positions = manifest.most_elements(0);
        // Where a sequence has a known number of positions, it has them all.
        let extent = manifest.extents.first().copied().flatten();
        let context_tokens = match (extent.or(options.context_tokens), max_positions) {
            (Some(asked), Some(most)) if asked > most => {
                let problem = format!("a context of {asked} positions was asked for, the model has {most}");
                return Err(RuntimeError::request(problem, "ask for a smaller context"));
            }
            (Some(asked), _) => asked,
            (None, most) => most.unwrap_or(DEFAULT_CONTEXT_TOKENS).min(DEFAULT_CONTEXT_TOKENS),
        };
        if context_tokens == 0 || options.step_tokens == 0 || options.max_sequences == 0 {
            return Err(RuntimeError::request(
                "a session needs a context, steps and sequences of at least one",
                "ask for at least one",
            ));
        }
        let cache_options = CacheOptions {
            max_sequences: options.max_sequences,
            context_tokens,
            once_tokens: options.once_tokens.or(options.context_tokens).unwrap_or(DEFAULT_CONTEXT_TOKENS).max(1),
            step_tokens: options.step_tokens.min(context_tokens.saturating_mul(options.max_sequences.into())),
            pool_tokens: options.pool_tokens,
        };
        let cache = CacheStore::new(manifest, cache_options)?;
        let workspace = workspace(&model, &cache)?;
        Ok(Self { model, cache, workspace })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// An empty sequence.
    ///
    /// # Errors
    /// The session has as many as it was made for.
    pub fn add_sequence(&mut self) -> Result<SequenceId> {
        self.cache.add()
    }

    /// A copy of a sequence; its cache is shared until one of them grows.
    ///
    /// # Errors
    /// There is no such sequence, or no room for another.
    pub fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId> {
        self.cache.fork(sequence)
    }

    /// Takes a sequence back to its first `tokens` tokens. What it was given once (a source) stays.
    ///
    /// # Errors
    /// There is no such sequence, it is shorter, or a window has moved on too far.
    pub fn truncate(&mut self, sequence: SequenceId, tokens: u64) -> Result<()> {
        self.cache.truncate(sequence, 0, tokens)
    }

    /// Ends a sequence.
    ///
    /// # Errors
    /// There is no such sequence.
    pub fn free(&mut self, sequence: SequenceId) -> Result<()> {
        self.cache.free(sequence)
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// There is no such sequence.
    pub fn length(&self, sequence: SequenceId) -> Result<u64> {
        self.cache.length(sequence, 0)
    }

    /// Elements of a sequence on each axis of the manifest.
    ///
    /// # Errors
    /// There is no such sequence.
    pub fn lengths(&self, sequence: SequenceId) -> Result<Vec<u64>> {
        (0..self.model.manifest().axes.len()).map(|axis| self.cache.length(sequence, axis)).collect()
    }

    /// Most positions of a sequence.
    pub fn context_tokens(&self) -> u64 {
        self.cache.options().context_tokens
    }

    /// Most tokens of a step.
    pub fn step_tokens(&self) -> u64 {
        self.cache.options().step_tokens
    }

    /// Sequences, pages and bytes.
    pub fn cache(&self) -> &CacheStore {
        &self.cache
    }

    /// One step: the new elements of several sequences go through the model together. What a sequence is given once (a source) comes
    /// with its first tokens or in a step before them; later steps read what that one kept.
    ///
    /// # Errors
    /// Names what was asked and what is allowed; no sequence has changed then.
    pub fn step(&mut self, step: &[StepInput]) -> Result<StepOutputs> {
        let manifest = Arc::clone(self.model.manifest());
        if step.is_empty() {
            return Err(RuntimeError::request("a step without sequences was asked for", "give at least one sequence"));
        }
        let before = step.iter().map(|part| self.lengths(part.sequence)).collect::<Result<Vec<_>>>()?;
        let checked = step.iter().zip(&before).map(|(part, before)| part.check(&manifest, before));
        let lengths = checked.collect::<Result<Vec<_>>>()?;
        self.check_whole(&manifest, step)?;
        let axes = (0..manifest.axes.len())
            .map(|axis| flatten_axis(axis, step, &lengths, &before))
            .collect::<Result<Vec<_>>>()?;
        if manifest.whole_sequences {
            self.grow(&axes)?;
        }
        let appends: Vec<Append> = step
            .iter()
            .zip(&lengths)
            .map(|(part, tokens)| Append { sequence: part.sequence, tokens: tokens.clone() })
            .collect();
        let copies = self.cache.begin_step(&appends)?;
        let result = self.workspace.copy_pages(&copies).and_then(|()| self.run(&manifest, step, &lengths, &axes));
        let sequences = || step.iter().map(|part| part.sequence);
        self.cache.end_step(sequences())?;
        if result.is_err() || manifest.whole_sequences {
            for (part, before) in step.iter().zip(&before) {
                for (axis, &length) in before.iter().enumerate() {
                    self.cache.truncate(part.sequence, axis, length)?;
                }
            }
        }
        result
    }

    /// Inputs in, launches, outputs out.
    fn run(
        &mut self,
        manifest: &Manifest,
        step: &[StepInput],
        lengths: &[Vec<u64>],
        axes: &[AxisStep],
    ) -> Result<StepOutputs> {
        for (index, input) in manifest.inputs.iter().enumerate() {
            self.workspace.write_input(index, &step::flatten(input, step, lengths))?;
        }
        let sequences: Vec<SequenceId> = step.iter().map(|part| part.sequence).collect();
        let tables = (0..manifest.caches.len()).map(|group| self.cache.block_table(group, &sequences));
        let tables = tables.collect::<Result<Vec<BlockTable>>>()?;
        self.workspace.run(axes, &tables, step.len() as u32)?;
        let mut outputs = Vec::with_capacity(manifest.outputs.len());
        for (index, output) in manifest.outputs.iter().enumerate() {
            let axis = &axes[output.axis];
            let bounds = |s: usize| -> usize {
                let first = axis.offsets[s];
                if output.rows { axis.rows.partition_point(|&row| row < first) } else { first as usize }
            };
            let rows: Vec<_> = (0..step.len()).map(|s| bounds(s)..bounds(s + 1)).collect();
            let n_rows = rows.last().map_or(0, |last| last.end);
            let data = step::to_f32(output, &self.workspace.read_output(index, n_rows as u64)?);
            outputs.push(StepOutput { name: output.name.clone(), dims: output.dims.clone(), data, rows });
        }
        Ok(StepOutputs { outputs })
    }

    /// One sequence's input of any length, in as many steps as it takes; the outputs are those of all pieces. [`Wanted::Last`] is the last of all.
    ///
    /// # Errors
    /// As [`Session::step`]; the pieces before the one that failed stay.
    pub fn step_in_pieces(&mut self, input: &StepInput) -> Result<StepOutputs> {
        let manifest = Arc::clone(self.model.manifest());
        let n = input.check(&manifest, &self.lengths(input.sequence)?)?[0] as usize;
        let most = self.step_tokens() as usize;
        if manifest.whole_sequences || n <= most {
            return self.step(std::slice::from_ref(input));
        }
        let room = self.context_tokens().saturating_sub(self.length(input.sequence)?);
        if n as u64 > room {
            return Err(RuntimeError::request(
                format!("{n} tokens do not fit into the context, which has room for {room}"),
                "give fewer tokens, or open the session with a larger context",
            ));
        }
        let selected = input.selected(n as u64)?;
        let mut outputs = StepOutputs::default();
        for start in (0..n).step_by(most) {
            let end = n.min(start + most);
            let rows = selected
                .iter()
                .filter(|&&row| (start..end).contains(&(row as usize)))
                .map(|&row| row - start as u32)
                .collect();
            outputs.extend(self.step(&[input.piece(&manifest, start..end, Wanted::List(rows))])?);
        }
        Ok(outputs)
    }

    /// Models that see a sequence only as a whole must be given it so.
    fn check_whole(&self, manifest: &Manifest, step: &[StepInput]) -> Result<()> {
        for part in step.iter().filter(|_| manifest.whole_sequences) {
            if self.cache.length(part.sequence, 0)? > 0 {
                return Err(RuntimeError::request(
                    "the model takes whole sequences only",
                    "give all tokens in one step",
                ));
            }
        }
        Ok(())
    }

    /// Makes room for a larger step, where nothing is kept between steps.
    fn grow(&mut self, axes: &[AxisStep]) -> Result<()> {
        let sequences = u64::from(self.cache.options().max_sequences);
        // Either there is room, or the cache refuses the step because a sequence has too much.
        let lacks = |(axis, limit): &(&AxisStep, &AxisLimit)| {
            let rows = axis.positions.len() as u64;
            rows > limit.step && rows <= limit.sequence.saturating_mul(sequences)
        };
        let lacking = axes.iter().zip(self.cache.limits()).filter(lacks).map(|(axis, _)| axis.positions.len() as u64);
        let Some(rows) = lacking.max() else { return Ok(()) };
        let options = CacheOptions { step_tokens: rows.next_power_of_two(), ..*self.cache.options() };
        self.cache.set_step_tokens(self.model.manifest(), options)?;
        self.workspace = workspace(&self.model, &self.cache)?;
        Ok(())
    }
}

fn workspace(model: &Arc<Model>, cache: &CacheStore) -> Result<Workspace> {
    Workspace::new(
        Arc::clone(model.device()),
        Arc::clone(model.manifest()),
        Arc::clone(model.weights()),
        &cache.limits().iter().map(|limit| limit.step).collect::<Vec<_>>(),
        &cache.capacity_pages(),
    )
}

/// The elements of one axis of a step.
fn flatten_axis(axis: usize, step: &[StepInput], lengths: &[Vec<u64>], before: &[Vec<u64>]) -> Result<AxisStep> {
    let mut flat = AxisStep { offsets: vec![0], ..AxisStep::default() };
    for (s, part) in step.iter().enumerate() {
        let (n, first) = (lengths[s][axis], before[s][axis]);
        let start = flat.positions.len() as u64;
        let too_long = || RuntimeError::request("a step has more than 2^32 positions", "give fewer tokens");
        u32::try_from(first + n).and(u32::try_from(start + n)).map_err(|_| too_long())?;
        flat.before.push(first as u32);
        flat.positions.extend((first..first + n).map(|position| position as u32));
        flat.sequences.extend((0..n).map(|_| s as u32));
        flat.offsets.push((start + n) as u32);
        // Only elements of the first axis are selected; of the others, all are.
        let selected = if axis == 0 { part.selected(n)? } else { (0..n as u32).collect() };
        flat.rows.extend(selected.into_iter().map(|row| row + start as u32));
    }
    Ok(flat)
}
