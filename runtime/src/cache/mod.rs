//! What sequences keep between steps: pages, rings, block tables; fork, truncate, free.
//!
//! Bookkeeping only, in page numbers: memory belongs to the device. Given the tokens of a step, promises that every position a kernel may
//! read or write has a page, that pages written are owned by one sequence alone, and that a step that cannot be given its pages changes nothing.
//!
//! ```text
//! begin_step ──page copies──▶ device, kernels ──▶ end_step
//! ```

mod pool;
mod group;
#[cfg(test)]
mod tests;

pub use group::{AxisLimit, CacheOptions, PageCopy, page_bytes, page_formula};
pub use pool::{NULL_PAGE, PageId};

use crate::artifact::manifest::Manifest;
use crate::error::{Result, RuntimeError};
use group::{Group, Table};
use std::collections::BTreeMap;

/// A sequence of one [`CacheStore`]. Stays unique after the sequence is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    index: u32,
    generation: u32,
}

/// What a step adds to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append<'a> {
    /// Which.
    pub sequence: SequenceId,
    /// New elements on each ragged axis.
    pub tokens: &'a [u64],
}

/// A group's block table for the sequences of a step: [`XfmCache`](crate::artifact::abi::XfmCache) without the pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    /// One row of `entries` a sequence.
    pub table: Vec<PageId>,
    /// Positions of each sequence.
    pub lengths: Vec<u32>,
    /// Entries a row.
    pub entries: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
}

/// The sequences of a session and their pages.
#[derive(Clone, Debug)]
pub struct CacheStore {
    options: CacheOptions,
    groups: Vec<Group>,
    sequences: Vec<Slot>,
    /// Names of the axes.
    axes: Vec<String>,
    /// What each axis is made for.
    limits: Vec<AxisLimit>,
}

/// A place for a sequence.
#[derive(Clone, Debug)]
struct Slot {
    generation: u32,
    sequence: Option<Sequence>,
}

#[derive(Clone, Debug)]
struct Sequence {
    /// Positions on each ragged axis.
    lengths: Vec<u64>,
    /// One for each group.
    tables: Vec<Table>,
}

impl CacheStore {
    /// A store without sequences.
    ///
    /// # Errors
    /// The options ask for more pages than can be numbered.
    pub fn new(manifest: &Manifest, options: CacheOptions) -> Result<Self> {
        let too_large = |problem| RuntimeError::request(problem, "ask for a smaller context or fewer sequences");
        let limit = u64::from(u32::MAX);
        let limits: Vec<AxisLimit> = (0..manifest.axes.len()).map(|axis| options.limit(manifest, axis)).collect();
        if limits.iter().any(|of| of.sequence > limit || of.step > limit) {
            return Err(too_large("a context or step has more than 2^32 tokens".to_owned()));
        }
        let groups = manifest
            .caches
            .iter()
            .map(|group| Group::new(group, &options, limits[group.axis]))
            .collect::<Result<_, _>>()
            .map_err(too_large)?;
        Ok(Self { options, groups, sequences: Vec::new(), axes: manifest.axes.clone(), limits })
    }

    /// What each axis may have.
    pub fn limits(&self) -> &[AxisLimit] {
        &self.limits
    }

    /// What the store was made for.
    pub fn options(&self) -> &CacheOptions {
        &self.options
    }

    /// Another size of steps, for a store in which nothing is kept between steps.
    pub(crate) fn set_step_tokens(&mut self, manifest: &Manifest, options: CacheOptions) -> Result<()> {
        let fresh = Self::new(manifest, options)?;
        if self.live_bytes() > 0 {
            return Err(RuntimeError::request(
                "the size of steps cannot change while something is cached",
                "free the sequences first",
            ));
        }
        for slot in &mut self.sequences {
            if let Some(sequence) = &mut slot.sequence {
                sequence.tables = fresh.groups.iter().map(Group::table).collect();
            }
        }
        (self.options, self.groups, self.limits) = (fresh.options, fresh.groups, fresh.limits);
        Ok(())
    }

    /// Pages of each group that memory must have room for, the null page included.
    pub fn capacity_pages(&self) -> Vec<u64> {
        self.groups.iter().map(|group| group.pool.capacity_pages()).collect()
    }

    /// Number of sequences.
    pub fn n_sequences(&self) -> usize {
        self.sequences.iter().filter(|slot| slot.sequence.is_some()).count()
    }

    /// An empty sequence.
    ///
    /// # Errors
    /// There are [`CacheOptions::max_sequences`] already.
    pub fn add(&mut self) -> Result<SequenceId> {
        let tables = self.groups.iter().map(Group::table).collect();
        self.insert(Sequence { lengths: vec![0; self.axes.len()], tables })
    }

    fn insert(&mut self, sequence: Sequence) -> Result<SequenceId> {
        self.check_room()?;
        let index = self.sequences.iter().position(|slot| slot.sequence.is_none()).unwrap_or(self.sequences.len());
        if index == self.sequences.len() {
            self.sequences.push(Slot { generation: 0, sequence: None });
        }
        let slot = &mut self.sequences[index];
        slot.generation = slot.generation.wrapping_add(1);
        slot.sequence = Some(sequence);
        Ok(SequenceId { index: index as u32, generation: slot.generation })
    }

    fn check_room(&self) -> Result<()> {
        let most = self.options.max_sequences;
        if self.n_sequences() < most as usize {
            return Ok(());
        }
        Err(RuntimeError::request(
            format!("the session has {most} sequences already"),
            "free a sequence, or open the session for more",
        ))
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence> {
        let slot = self.sequences.get(id.index as usize).filter(|slot| slot.generation == id.generation);
        slot.and_then(|slot| slot.sequence.as_ref()).ok_or_else(|| {
            RuntimeError::request("the sequence was freed, or is of another session", "use a sequence of this session")
        })
    }

    /// The groups beside a sequence that exists.
    fn split(&mut self, id: SequenceId) -> Result<(&mut Vec<Group>, &mut Sequence)> {
        self.sequence(id)?;
        let Self { groups, sequences, .. } = self;
        let sequence = sequences.get_mut(id.index as usize).and_then(|slot| slot.sequence.as_mut());
        let gone = || RuntimeError::request("the sequence was freed", "use a sequence of this session");
        Ok((groups, sequence.ok_or_else(gone)?))
    }

    /// Positions of a sequence on an axis.
    ///
    /// # Errors
    /// There is no such sequence.
    pub fn length(&self, id: SequenceId, axis: usize) -> Result<u64> {
        Ok(self.sequence(id)?.lengths.get(axis).copied().unwrap_or(0))
    }

    /// A second sequence with the same contents. Pages are shared until one of them writes.
    ///
    /// # Errors
    /// There is no such sequence, or no room for another.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        self.check_room()?;
        let (groups, sequence) = self.split(id)?;
        let tables = groups.iter_mut().zip(&sequence.tables).map(|(group, table)| group.fork(table)).collect();
        let copy = Sequence { lengths: sequence.lengths.clone(), tables };
        self.insert(copy)
    }

    /// Takes a sequence back to its first `to` positions on `axis`.
    ///
    /// # Errors
    /// There is no such sequence, it is shorter than that, or a ring no longer holds what the next token would read.
    pub fn truncate(&mut self, id: SequenceId, axis: usize, to: u64) -> Result<()> {
        let from = self.length(id, axis)?;
        if to > from {
            return Err(RuntimeError::request(
                format!("cannot cut to {to} positions a sequence that has {from}"),
                "give at most its length",
            ));
        }
        if to == from {
            return Ok(());
        }
        let (groups, sequence) = self.split(id)?;
        let mut own: Vec<_> =
            groups.iter_mut().zip(&mut sequence.tables).filter(|(group, _)| group.axis == axis).collect();
        for (group, table) in &own {
            group.can_truncate(table, to).map_err(|problem| {
                RuntimeError::request(problem, "cut less, or start the sequence again from its first token")
            })?;
        }
        for (group, table) in &mut own {
            group.truncate(table, from, to);
        }
        sequence.lengths[axis] = to;
        Ok(())
    }

    /// Ends a sequence; its pages are free unless another sequence shares them.
    ///
    /// # Errors
    /// There is no such sequence.
    pub fn free(&mut self, id: SequenceId) -> Result<()> {
        let (groups, sequence) = self.split(id)?;
        for (group, table) in groups.iter_mut().zip(&mut sequence.tables) {
            group.release(table);
        }
        self.sequences[id.index as usize].sequence = None;
        Ok(())
    }

    /// Gives pages to the tokens of a step and makes the sequences longer. The `copies` are to be done before any kernel runs.
    ///
    /// # Errors
    /// A sequence does not exist, is given twice, or grows past the context; the step is too large; no pages are left. Nothing has changed then.
    pub fn begin_step<'a>(
        &mut self,
        step: impl Iterator<Item = Append<'a>> + Clone,
        copies: &mut Vec<PageCopy>,
    ) -> Result<()> {
        self.check_step(step.clone())?;
        for (g, group) in self.groups.iter().enumerate() {
            let mut released = BTreeMap::new();
            let mut needed = 0;
            for append in step.clone() {
                let sequence = self.sequence(append.sequence)?;
                let from = sequence.lengths[group.axis];
                needed +=
                    group.pages_needed(&sequence.tables[g], from, from + append.tokens[group.axis], &mut released);
            }
            if needed > group.pool.available() {
                return Err(RuntimeError::request(
                    format!("the cache is full: the step needs {needed} pages, {} are free", group.pool.available()),
                    "free a sequence, or open the session with a larger pool",
                ));
            }
        }
        copies.clear();
        for append in step {
            let (groups, sequence) = self.split(append.sequence)?;
            for (g, (group, table)) in groups.iter_mut().zip(&mut sequence.tables).enumerate() {
                let from = sequence.lengths[group.axis];
                let given = group.append(table, from, from + append.tokens[group.axis], g, copies);
                debug_assert!(given, "the pages were counted above");
            }
            for (length, tokens) in sequence.lengths.iter_mut().zip(append.tokens) {
                *length += tokens;
            }
        }
        Ok(())
    }

    fn check_step<'a>(&self, step: impl Iterator<Item = Append<'a>> + Clone) -> Result<()> {
        for (i, append) in step.clone().enumerate() {
            let sequence = self.sequence(append.sequence)?;
            if step.clone().take(i).any(|other| other.sequence == append.sequence) {
                return Err(RuntimeError::request(
                    "a sequence is given twice in one step",
                    "give all its tokens at once",
                ));
            }
            if append.tokens.len() != self.axes.len() {
                let problem = format!("a step has {} axes, the model {}", append.tokens.len(), self.axes.len());
                return Err(RuntimeError::request(problem, "give the new elements of every axis"));
            }
            for (axis, (length, &tokens)) in sequence.lengths.iter().zip(append.tokens).enumerate() {
                self.check_length(axis, length.saturating_add(tokens))?;
            }
        }
        let total = |axis| step.clone().fold(0, |total: u64, append| total.saturating_add(append.tokens[axis]));
        match (0..self.axes.len()).map(|axis| (axis, total(axis))).find(|&(axis, n)| n > self.limits[axis].step) {
            Some((axis, total)) => Err(RuntimeError::request(
                format!(
                    "the step has {total} {}, the session takes {} at a time",
                    self.axes[axis], self.limits[axis].step
                ),
                match axis {
                    0 => "give the tokens in pieces, or open the session with larger steps",
                    _ => "give fewer sequences a step, or open the session with larger steps",
                },
            )),
            None => Ok(()),
        }
    }

    /// Refuses a sequence with more elements of an axis than the axis is made for.
    fn check_length(&self, axis: usize, after: u64) -> Result<()> {
        let most = self.limits[axis].sequence;
        if after <= most {
            return Ok(());
        }
        let name = &self.axes[axis];
        Err(match axis {
            0 => RuntimeError::request(
                format!("a sequence would have {after} positions, the context has {most}"),
                "give fewer tokens, or open the session with a larger context",
            ),
            _ => RuntimeError::request(
                format!("a sequence would have {after} {name}, there is room for {most}"),
                format!("give fewer {name}, or open the session for more (`once_tokens`)"),
            ),
        })
    }

    /// Gives back what was kept for the step only.
    ///
    /// # Errors
    /// A sequence does not exist.
    pub fn end_step(&mut self, sequences: impl IntoIterator<Item = SequenceId>) -> Result<()> {
        for id in sequences {
            let (groups, sequence) = self.split(id)?;
            for (group, table) in groups.iter_mut().zip(&mut sequence.tables) {
                group.end_step(table);
            }
        }
        Ok(())
    }

    /// Makes `table` the block table of group `g` for these sequences, in this order.
    ///
    /// # Errors
    /// A sequence or the group does not exist.
    pub fn block_table(&self, g: usize, sequences: &[SequenceId], table: &mut BlockTable) -> Result<()> {
        let none = || RuntimeError::request(format!("there is no cache group {g}"), "give a group of the manifest");
        let group = self.groups.get(g).ok_or_else(none)?;
        let mut most = 0;
        for &id in sequences {
            most = most.max(self.sequence(id)?.tables[g].entries());
        }
        let entries = group.entries(most);
        table.table.clear();
        table.lengths.clear();
        (table.entries, table.page_tokens) = (entries as u32, group.page_tokens() as u32);
        for &id in sequences {
            let sequence = self.sequence(id)?;
            group.row(&sequence.tables[g], entries, &mut table.table);
            table.lengths.push(sequence.lengths[group.axis] as u32);
        }
        Ok(())
    }

    /// Bytes of the pages that sequences own; a shared page counts once.
    pub fn live_bytes(&self) -> u64 {
        self.groups.iter().map(Group::live_bytes).sum()
    }

    /// Bytes of the pages that were ever used: what the memory has grown to.
    pub fn allocated_bytes(&self) -> u64 {
        self.groups.iter().map(Group::allocated_bytes).sum()
    }
}
