//! What a drawing shows: boxes within boxes, nodes, and the wires between them, before any of them has a place.
//!
//! A [`Scene`] is made of a program by [`scene_of`](super::scene_of()) and knows nothing of pixels. Nodes are in topological order, frames
//! (modules) come after the frames around them, and everything is in an order that depends on the program alone.

/// A whole drawing.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// The model's name.
    pub title: String,
    /// What is shown of it: `arch`, `graph`, `fused`.
    pub stage: String,
    /// Modules; the first is the model and lies in none.
    pub frames: Vec<Frame>,
    /// Operations, kernels, caches, inputs and outputs, in topological order.
    pub nodes: Vec<Node>,
    /// Who reads what, in the order of the readers.
    pub wires: Vec<Wire>,
}

/// A module: a box around what it computes.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The frame around it.
    pub parent: Option<usize>,
    /// The last component of its instance path: `self_attn`.
    pub name: String,
    /// Absolute instance path; of the first layer where several are drawn as one.
    pub path: String,
    /// The module it is an instance of with its options: `linear(size = 4096)`. May be empty.
    pub module: String,
    /// Which layers it stands for, where it stands for several.
    pub repeat: Option<Repeat>,
    /// Which slices of a value its layers read, each its own: `slices 0-9 of 35, one each`. May be empty.
    pub slices: String,
    /// Parameters of all that it stands for, tensors that are shared counted once.
    pub parameters: u64,
    /// Arithmetic of all that it stands for.
    pub cost: Cost,
    /// Whether it is shown closed at first.
    pub closed: bool,
    /// What differs, in a comparison.
    pub mark: Mark,
    /// What the mark means in words.
    pub change: String,
}

/// Equal layers drawn once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// How often what is drawn is run.
    pub times: u64,
    /// How many have weights of their own: fewer where a layer is applied again.
    pub instances: u64,
    /// Which: `0-31`, `0, 2, .. 30`.
    pub which: String,
}

impl Repeat {
    /// Behind a name: ` × 12`, ` × 12, shared weights`, ` × 12, weights of 3`. Nothing where it is run once.
    pub(super) fn text(&self) -> String {
        match (self.times, self.instances) {
            (0 | 1, _) => String::new(),
            (times, 1) => format!(" × {times}, shared weights"),
            (times, n) if n < times => format!(" × {times}, weights of {n}"),
            (times, _) => format!(" × {times}"),
        }
    }
}

/// Arithmetic for one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations whatever the context.
    pub flops: f64,
    /// Floating-point operations for each token that it sees.
    pub flops_per_key: f64,
}

impl Cost {
    /// Both together, `times` as often.
    pub(super) fn plus(self, other: Cost, times: f64) -> Cost {
        Cost {
            flops: self.flops + other.flops * times,
            flops_per_key: self.flops_per_key + other.flops_per_key * times,
        }
    }
}

/// What a node is, which decides how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An input of the model.
    Input,
    /// An output of the model.
    Output,
    /// A product.
    Product,
    /// Attention.
    Attention,
    /// Elementwise work, norms, groups of these.
    Rows,
    /// A lookup.
    Lookup,
    /// What is kept of each token.
    Cache,
    /// Anything else.
    Other,
}

impl Kind {
    /// All kinds, in the order of the legend.
    pub const ALL: [Kind; 8] =
        [Kind::Input, Kind::Product, Kind::Attention, Kind::Rows, Kind::Lookup, Kind::Cache, Kind::Other, Kind::Output];

    /// As a class of a stylesheet, and for screen readers.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Input => "input",
            Kind::Output => "output",
            Kind::Product => "product",
            Kind::Attention => "attention",
            Kind::Rows => "rows",
            Kind::Lookup => "lookup",
            Kind::Cache => "cache",
            Kind::Other => "other",
        }
    }
}

/// How a node is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A box with lines.
    Card,
    /// A rounded label.
    Pill,
    /// A sign in a circle.
    Sign,
    /// A drum.
    Drum,
}

/// One operation, kernel, cache, input or output.
#[derive(Clone, Debug)]
pub struct Node {
    /// The frame it lies in.
    pub frame: usize,
    /// What it is.
    pub kind: Kind,
    /// How it is drawn.
    pub shape: Shape,
    /// First line.
    pub title: String,
    /// Instance path.
    pub path: String,
    /// What it does, a line each.
    pub lines: Vec<String>,
    /// Why it ends where it does. May be empty.
    pub reason: String,
    /// The weights that it reads.
    pub weights: Vec<Weight>,
    /// Further facts: name and value.
    pub facts: Vec<(String, String)>,
    /// The equation it comes from: place and text.
    pub equation: Option<(String, String)>,
    /// Types of the results.
    pub results: Vec<String>,
    /// Bytes of the results of one token.
    pub result_bytes: u64,
    /// Its arithmetic.
    pub cost: Cost,
    /// What differs, in a comparison.
    pub mark: Mark,
    /// What the mark means in words.
    pub change: String,
}

/// A parameter as a node reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Absolute path in the first layer.
    pub path: String,
    /// `f32[4096, 4096]`.
    pub ty: String,
    /// Number of elements.
    pub elements: u64,
    /// Bytes as read.
    pub bytes: u64,
    /// Whether layers have the same one rather than one each.
    pub shared: bool,
}

/// A value on its way from a node to one that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Node and result.
    pub from: (usize, usize),
    /// Node and operand.
    pub to: (usize, usize),
    /// Its type: `f32[tokens, 4096]`.
    pub label: String,
    /// What differs, in a comparison.
    pub mark: Mark,
}

/// What a comparison says of a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// The same on both sides, or nothing is compared.
    #[default]
    Same,
    /// Only in the second.
    Added,
    /// Only in the first.
    Removed,
    /// In both, and not the same.
    Changed,
}

impl Mark {
    /// As a class of a stylesheet.
    pub fn name(self) -> &'static str {
        match self {
            Mark::Same => "same",
            Mark::Added => "added",
            Mark::Removed => "removed",
            Mark::Changed => "changed",
        }
    }
}

impl Scene {
    /// The frames around a frame and itself, innermost first.
    pub(super) fn around(&self, frame: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(frame), |f| self.frames[*f].parent)
    }

    /// How often what lies in a frame is run.
    pub(super) fn times(&self, frame: usize) -> u64 {
        self.around(frame).filter_map(|f| self.frames[f].repeat.as_ref()).map(|r| r.times).product()
    }

    /// Whether `inner` is `outer` or lies in it.
    pub(super) fn is_in(&self, inner: usize, outer: usize) -> bool {
        self.around(inner).any(|f| f == outer)
    }
}
