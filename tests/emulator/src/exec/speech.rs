//! What blocks tell each other through atomics on global memory (PTX ISA, chapter 8, "Memory Consistency Model"): a thread that fences and then changes a word tells whoever
//! changes it later, and fences then, all that it knew at its fence. Without either fence nothing is told, in whatever order blocks happen to run here.

use std::collections::{BTreeMap, HashMap};

use super::block::Env;
use super::clocks::{Clocks, Known, Time, join};
use super::fault::FaultKind;
use super::warp::Warp;
use crate::decode::lanes::lanes;
use crate::decode::memory::Strength;

/// Of each block of a launch, by its number: up to which time the accesses of its threads are known.
pub(crate) type Told = BTreeMap<u32, Known>;

fn add(into: &mut Told, from: &Told) {
    for (block, known) in from {
        join(into.entry(*block).or_default(), known);
    }
}

/// What the threads of a block have to tell, and what they heard.
#[derive(Default)]
pub(crate) struct Speech {
    /// By thread: what it knew at its last fence, which its atomics tell from then on.
    ready: HashMap<usize, Told>,
    /// By thread: what its atomics found since its last fence.
    heard: HashMap<usize, Told>,
    /// What threads know of other blocks, and since when.
    learned: Vec<(usize, Time, Told)>,
}

impl Speech {
    /// Whether a lane of a warp knows of what a thread of another block did at a time.
    pub(crate) fn knows(
        &self,
        clocks: &Clocks,
        (warp, lane): (usize, usize),
        (block, thread, time): (u32, usize, Time),
    ) -> bool {
        let is_told =
            |told: &Told| told.get(&block).and_then(|known| known.get(thread)).is_some_and(|&known| time <= known);
        self.learned.iter().any(|(by, since, told)| is_told(told) && clocks.knows(warp, lane, *by, *since))
    }
}

impl Warp {
    /// All that a lane knows of: of its own block, and of others.
    fn all_known(&self, env: &mut Env<'_>, lane: usize, block: u32) -> Told {
        let mut told = Told::new();
        for (by, since, other) in &env.speech.learned {
            if env.clocks.knows(self.index, lane, *by, *since) {
                add(&mut told, other);
            }
        }
        env.clocks.release(self.index, 1 << lane, told.entry(block).or_default());
        told
    }

    /// A fence that orders what threads of other blocks see.
    pub(crate) fn fence(&self, env: &mut Env<'_>, mask: u32) {
        let Some((_, block)) = env.marked else { return };
        for lane in lanes(mask) {
            let thread = self.thread(lane);
            if let Some(heard) = env.speech.heard.remove(&thread) {
                env.speech.learned.push((thread, env.clocks.tick(), heard));
            }
            let told = self.all_known(env, lane, block);
            env.speech.ready.insert(thread, told);
        }
    }

    /// A lane is about to change global memory by an atomic.
    pub(crate) fn changes(
        &self,
        env: &mut Env<'_>,
        lane: usize,
        (address, bytes): (u64, usize),
        strength: Strength,
    ) -> Result<(), FaultKind> {
        self.writes(env, lane, address, &[])?;
        {
            let Some((by, knows)) = self.marks(env.marked, (&env.clocks, &env.speech), lane) else { return Ok(()) };
            env.memory.note_change((address, bytes), by, &knows)?;
        }
        let Some((_, block)) = env.marked.filter(|_| strength.between_blocks) else { return Ok(()) };
        let thread = self.thread(lane);
        if let Some(told) = env.memory.told.get(&address).cloned() {
            if strength.acquires {
                env.speech.learned.push((thread, env.clocks.tick(), told));
            } else {
                add(env.speech.heard.entry(thread).or_default(), &told);
            }
        }
        let says = match strength.releases {
            true => Some(self.all_known(env, lane, block)),
            false => env.speech.ready.get(&thread).cloned(),
        };
        if let Some(says) = says {
            add(env.memory.told.entry(address).or_default(), &says);
        }
        Ok(())
    }
}
