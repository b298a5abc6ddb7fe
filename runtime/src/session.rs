//! A session: sequences with their caches, and one step over a ragged batch of them.
//!
//! A step is checked before anything changes; when a device fails in the middle, the sequences are as they were before it.

use crate::artifact::manifest::Manifest;
use crate::cache::{Append, AxisLimit, BlockTable, CacheOptions, CacheStore, PageCopy, SequenceId};
use crate::device::AxisStep;
use crate::device::workspace::Workspace;
use crate::error::{Result, RuntimeError};
use crate::model::Model;
use crate::need::{self, Loaded};
use crate::step::{self, StepInput, StepOutputs, Wanted};
use crate::widen;
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

impl SessionOptions {
    /// What every session needs at least: one sequence of one position.
    pub fn least() -> Self {
        Self { context_tokens: Some(1), step_tokens: 1, ..Self::default() }
    }

    /// What a session of these options keeps.
    ///
    /// # Errors
    /// More positions than the model has, or none.
    pub fn cache_options(&self, manifest: &Manifest) -> Result<CacheOptions> {
        let max_positions = manifest.most_elements(0);
        // Where a sequence has a known number of positions, it has them all.
        let extent = manifest.extents.first().copied().flatten();
        let context_tokens = match (extent.or(self.context_tokens), max_positions) {
            (Some(asked), Some(most)) if asked > most => {
                let problem = format!("a context of {asked} positions was asked for, the model has {most}");
                return Err(RuntimeError::request(problem, "ask for a smaller context"));
            }
            (Some(asked), _) => asked,
            (None, most) => most.unwrap_or(DEFAULT_CONTEXT_TOKENS).min(DEFAULT_CONTEXT_TOKENS),
        };
        if context_tokens == 0 || self.step_tokens == 0 || self.max_sequences == 0 {
            return Err(RuntimeError::request(
                "a session needs a context, steps and sequences of at least one",
                "ask for at least one",
            ));
        }
        Ok(CacheOptions {
            max_sequences: self.max_sequences,
            context_tokens,
            once_tokens: self.once_tokens.or(self.context_tokens).unwrap_or(DEFAULT_CONTEXT_TOKENS).max(1),
            step_tokens: self.step_tokens.min(context_tokens.saturating_mul(self.max_sequences.into())),
            pool_tokens: self.pool_tokens,
        })
    }
}

/// Sequences of one model and the memory they need.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    cache: CacheStore,
    workspace: Workspace,
    batch: Batch,
}

/// The last step in the form that devices read. Kept so that a step of no more elements than one before it takes no memory from the system.
#[derive(Debug, Default)]
struct Batch {
    sequences: Vec<SequenceId>,
    /// Elements on each axis that each sequence had before the step, and those that it gets: one row a sequence.
    before: Vec<u64>,
    lengths: Vec<u64>,
    axes: Vec<AxisStep>,
    copies: Vec<PageCopy>,
    tables: Vec<BlockTable>,
    /// Of an input or output.
    bytes: Vec<u8>,
}

impl Session {
    pub(crate) fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let manifest = model.manifest();
        let cache_options = options.cache_options(manifest)?;
        if let Some(room) = model.device().room()? {
            need::ensure(manifest, &cache_options, &room, Loaded::Model)?;
        }
        let cache = CacheStore::new(manifest, cache_options)?;
        let workspace = workspace(&model, &cache)?;
        Ok(Self { model, cache, workspace, batch: Batch::default() })
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
        let mut outputs = StepOutputs::default();
        self.step_into(step, &mut outputs)?;
        Ok(outputs)
    }

    /// As [`Session::step`], in the memory of an earlier step's outputs. A step of no more elements than one before it then takes no memory from
    /// the system.
    ///
    /// # Errors
    /// As [`Session::step`]; `outputs` are then undefined.
    pub fn step_into(&mut self, step: &[StepInput], outputs: &mut StepOutputs) -> Result<()> {
        let manifest = Arc::clone(self.model.manifest());
        if step.is_empty() {
            return Err(RuntimeError::request("a step without sequences was asked for", "give at least one sequence"));
        }
        self.batch.set(&manifest, &self.cache, step)?;
        if manifest.whole_sequences {
            self.grow()?;
        }
        let n_axes = manifest.axes.len();
        let Batch { sequences, lengths, copies, .. } = &mut self.batch;
        let appends = sequences.iter().zip(lengths.chunks_exact(n_axes));
        let appends = appends.map(|(&sequence, tokens)| Append { sequence, tokens });
        self.cache.begin_step(appends, copies)?;
        let copied = self.workspace.copy_pages(copies);
        let result = copied.and_then(|()| self.batch.run(&manifest, &self.cache, &mut self.workspace, step, outputs));
        let Batch { sequences, before, .. } = &self.batch;
        self.cache.end_step(sequences.iter().copied())?;
        if result.is_err() || manifest.whole_sequences {
            for (&sequence, before) in sequences.iter().zip(before.chunks_exact(n_axes)) {
                for (axis, &length) in before.iter().enumerate() {
                    self.cache.truncate(sequence, axis, length)?;
                }
            }
        }
        result
    }

    /// One sequence's input of any length, in as many steps as it takes; the outputs are those of all pieces. [`Wanted::Last`] is the last of all.
    ///
    /// # Errors
    /// As [`Session::step`]; the pieces before the one that failed stay.
    pub fn step_in_pieces(&mut self, input: &StepInput) -> Result<StepOutputs> {
        let mut outputs = StepOutputs::default();
        self.step_in_pieces_into(input, &mut outputs)?;
        Ok(outputs)
    }

    /// As [`Session::step_in_pieces`], in the memory of an earlier step's outputs.
    ///
    /// # Errors
    /// As [`Session::step_in_pieces`]; `outputs` are then undefined.
    pub fn step_in_pieces_into(&mut self, input: &StepInput, outputs: &mut StepOutputs) -> Result<()> {
        let manifest = Arc::clone(self.model.manifest());
        self.batch.set(&manifest, &self.cache, std::slice::from_ref(input))?;
        let n = self.batch.lengths[0] as usize;
        let most = self.step_tokens() as usize;
        if manifest.whole_sequences || n <= most {
            return self.step_into(std::slice::from_ref(input), outputs);
        }
        let room = self.context_tokens().saturating_sub(self.length(input.sequence)?);
        if n as u64 > room {
            return Err(RuntimeError::request(
                format!("{n} tokens do not fit into the context, which has room for {room}"),
                "give fewer tokens, or open the session with a larger context",
            ));
        }
        let selected = std::mem::take(&mut self.batch.axes[0].rows);
        *outputs = StepOutputs::default();
        for start in (0..n).step_by(most) {
            let end = n.min(start + most);
            let rows = selected
                .iter()
                .filter(|&&row| (start..end).contains(&(row as usize)))
                .map(|&row| row - start as u32)
                .collect();
            outputs.extend(self.step(&[input.piece(&manifest, start..end, Wanted::List(rows))])?);
        }
        Ok(())
    }

    /// Makes room for a larger step, where nothing is kept between steps.
    fn grow(&mut self) -> Result<()> {
        let sequences = u64::from(self.cache.options().max_sequences);
        // Either there is room, or the cache refuses the step because a sequence has too much.
        let lacks = |(axis, limit): &(&AxisStep, &AxisLimit)| {
            let rows = axis.positions.len() as u64;
            rows > limit.step && rows <= limit.sequence.saturating_mul(sequences)
        };
        let axes = &self.batch.axes;
        let lacking = axes.iter().zip(self.cache.limits()).filter(lacks).map(|(axis, _)| axis.positions.len() as u64);
        let Some(rows) = lacking.max() else { return Ok(()) };
        let manifest = self.model.manifest();
        let options = CacheOptions { step_tokens: rows.next_power_of_two(), ..*self.cache.options() };
        // Beside the memory that there is, which stays what it is where this fails.
        if let Some(room) = self.model.device().room()? {
            need::ensure(manifest, &options, &room, Loaded::Model)?;
        }
        let workspace = workspace(&self.model, &CacheStore::new(manifest, options)?)?;
        self.cache.set_step_tokens(manifest, options)?;
        self.workspace = workspace;
        Ok(())
    }
}

impl Batch {
    /// Makes it that of `step`, which is checked.
    fn set(&mut self, manifest: &Manifest, cache: &CacheStore, step: &[StepInput]) -> Result<()> {
        let n_axes = manifest.axes.len();
        self.sequences.clear();
        self.sequences.extend(step.iter().map(|part| part.sequence));
        self.before.clear();
        self.lengths.resize(step.len() * n_axes, 0);
        for (part, lengths) in step.iter().zip(self.lengths.chunks_exact_mut(n_axes)) {
            let start = self.before.len();
            for axis in 0..n_axes {
                self.before.push(cache.length(part.sequence, axis)?);
            }
            let before = &self.before[start..];
            part.check(manifest, before, lengths)?;
            if manifest.whole_sequences && before[0] > 0 {
                return Err(RuntimeError::request(
                    "the model takes whole sequences only",
                    "give all tokens in one step",
                ));
            }
        }
        self.axes.resize_with(n_axes, AxisStep::default);
        for (axis, flat) in self.axes.iter_mut().enumerate() {
            let of_axis = |all: &[u64], s: usize| all[s * n_axes + axis];
            flatten_axis(axis, step, |s| (of_axis(&self.before, s), of_axis(&self.lengths, s)), flat)?;
        }
        Ok(())
    }

    /// Inputs, kernels, outputs.
    fn run(
        &mut self,
        manifest: &Manifest,
        cache: &CacheStore,
        workspace: &mut Workspace,
        step: &[StepInput],
        outputs: &mut StepOutputs,
    ) -> Result<()> {
        let Self { sequences, lengths, axes, tables, bytes, .. } = self;
        for (index, input) in manifest.inputs.iter().enumerate() {
            step::flatten(input, step, lengths, axes.len(), bytes);
            workspace.write_input(index, bytes)?;
        }
        tables.resize_with(manifest.caches.len(), BlockTable::default);
        for (group, table) in tables.iter_mut().enumerate() {
            cache.block_table(group, sequences, table)?;
        }
        workspace.run(axes, tables, step.len() as u32)?;
        outputs.reset(manifest);
        for (index, (output, made)) in manifest.outputs.iter().zip(&mut outputs.outputs).enumerate() {
            let axis = &axes[output.axis];
            let bounds = |s: usize| -> usize {
                let first = axis.offsets[s];
                if output.rows { axis.rows.partition_point(|&row| row < first) } else { first as usize }
            };
            made.rows.extend((0..step.len()).map(|s| bounds(s)..bounds(s + 1)));
            let rows = bounds(step.len());
            made.data.resize(rows * made.row_len(), 0.0);
            let (threads, mut rest) = (workspace.host_threads(), made.data.as_mut_slice());
            workspace.read_output(index, rows as u64, &mut |bytes| {
                let n = (bytes.len() / output.dtype.size_bytes()).min(rest.len());
                let (values, behind) = std::mem::take(&mut rest).split_at_mut(n);
                widen::to_f32(output, bytes, values, threads);
                rest = behind;
            })?;
        }
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

/// Makes `flat` the elements of one axis of a step; `span` gives how many a sequence had before, and how many it gets.
fn flatten_axis(
    axis: usize,
    step: &[StepInput],
    span: impl Fn(usize) -> (u64, u64),
    flat: &mut AxisStep,
) -> Result<()> {
    let AxisStep { offsets, positions, sequences, rows, before } = flat;
    for list in [&mut *offsets, positions, sequences, rows, before] {
        list.clear();
    }
    offsets.push(0);
    for (s, part) in step.iter().enumerate() {
        let (first, n) = span(s);
        let start = positions.len() as u64;
        let too_long = || RuntimeError::request("a step has more than 2^32 positions", "give fewer tokens");
        u32::try_from(first + n).and(u32::try_from(start + n)).map_err(|_| too_long())?;
        before.push(first as u32);
        positions.extend((first..first + n).map(|position| position as u32));
        sequences.extend((0..n).map(|_| s as u32));
        offsets.push((start + n) as u32);
        // Only elements of the first axis are selected; of the others, all are.
        match axis {
            0 => part.select(n, start, rows)?,
            _ => rows.extend(start as u32..(start + n) as u32),
        }
    }
    Ok(())
}
