//! How the keys of a query are divided where rows are few.

/// Parts that the keys of a query are divided into, which a [`CombineSpec`](super::kernel::CombineSpec) makes one, or the attention itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// Most parts of a query; 1: nothing is divided.
    pub parts: u64,
    /// Most rows of a step in which keys are divided.
    pub rows: u64,
    /// The rows of a step share the parts: of `n` rows each has `parts / n`, and one at least. Otherwise each has all.
    pub shared: bool,
    /// Tiles of the heads of a row, where the last of the parts of a tile to be done makes one result of all; 0: a launch behind does.
    pub joined: u64,
}

impl Division {
    /// Of a query into one part.
    pub const NONE: Division = Division { parts: 1, rows: 0, shared: false, joined: 0 };

    /// Parts of all rows of a step together, at most.
    pub fn of_step(&self) -> u64 {
        if self.shared { self.parts.max(self.rows) } else { self.parts * self.rows }
    }

    /// Counters of parts that are done, of all rows of a step.
    pub fn counters(&self) -> u64 {
        self.rows * self.joined
    }
}
