//! The syntax tree of a PTX module: what is written, names unresolved.

/// A module: its header, its variables, its functions.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub(crate) version: String,
    pub(crate) target: String,
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<Function>,
}

/// Where a variable lies (PTX ISA, section 5.1, "State Spaces").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A variable, at module level, in a function, or a parameter.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) align: u64,
    /// Bytes of one element.
    pub(crate) element: u64,
    /// Bytes of all; `None` for `.extern .shared x[]`, which takes the launch's dynamic memory.
    pub(crate) bytes: Option<u64>,
    pub(crate) initial: Vec<Initial>,
    pub(crate) line: u32,
}

/// One element of an initialiser.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Initial {
    Bits(u64),
    /// The address of a variable, plus an offset.
    Address(String, i64),
}

/// An `.entry` or a `.func`.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) entry: bool,
    pub(crate) returns: Vec<Variable>,
    pub(crate) params: Vec<Variable>,
    pub(crate) reqntid: Option<[u32; 3]>,
    pub(crate) maxntid: Option<[u32; 3]>,
    pub(crate) minnctapersm: Option<u32>,
    pub(crate) maxnreg: Option<u32>,
    /// `None` for a declaration.
    pub(crate) body: Option<Vec<Statement>>,
    pub(crate) line: u32,
}

/// A statement of a body.
#[derive(Debug)]
pub(crate) enum Statement {
    Registers(Vec<Register>),
    Variable(Variable),
    Label(String),
    /// `name: .branchtargets a, b;`
    Targets(String, Vec<String>),
    Block(Vec<Statement>),
    Instruction(Instruction),
}

/// `.reg .b32 %r<8>;` declares `%r0` to `%r7`, a register without a count itself.
#[derive(Debug)]
pub(crate) struct Register {
    pub(crate) name: String,
    pub(crate) count: Option<u32>,
    pub(crate) ty: String,
    pub(crate) line: u32,
}

/// `@!p name.modifier.modifier operands;`
#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    /// The register, and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    pub(crate) name: String,
    pub(crate) modifiers: Vec<String>,
    pub(crate) operands: Vec<Operand>,
    pub(crate) line: u32,
}

/// An operand, unresolved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    /// A register, a special register with its component, a variable, a label or a function.
    Name(String),
    /// `name+4`, outside of brackets.
    Offset(String, i64),
    /// `!p`.
    Not(String),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `_`.
    Sink,
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `[base+offset]`, or `[map, {x, y}]` with all that follows the first comma.
    Address(Box<Operand>, i64, Vec<Operand>),
    /// `a|b`.
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
}
