//! The equations as written: a tree with a span on everything a message may point at.

use std::sync::Arc;

use crate::diagnostic::Span;
use crate::graph::DType;

/// A name and where it stands.
#[derive(Clone, Debug)]
pub struct Ident {
    /// The name.
    pub name: Arc<str>,
    /// The place.
    pub span: Span,
}

/// A definition or a binding.
#[derive(Clone, Debug)]
pub enum Item {
    /// `name(options)(inputs) { .. }`.
    Module(Arc<Module>),
    /// `name(parameters) = expression`, or a mask.
    Function(Arc<Function>),
    /// `a, b = expression`.
    Binding(Arc<Binding>),
}

impl Item {
    /// The names that it binds.
    pub fn names(&self) -> Vec<&Ident> {
        match self {
            Item::Module(module) => vec![&module.name],
            Item::Function(function) => vec![&function.name],
            Item::Binding(binding) => binding.names.iter().collect(),
        }
    }
}

/// A module: options, inputs, a body and what it returns.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: Ident,
    /// What makes it more special.
    pub options: Vec<Param>,
    /// The tensors it is applied to.
    pub inputs: Vec<Param>,
    /// Definitions and bindings in order.
    pub items: Vec<Item>,
    /// What `return` gives.
    pub result: Expr,
}

/// A function of sizes, modules or tensors, expanded in place. A mask without parameters is one of none.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name.
    pub name: Ident,
    /// Its parameters.
    pub params: Vec<Param>,
    /// What it stands for.
    pub body: Expr,
    /// Written `mask name = ..`, without parentheses: used without a call.
    pub constant: bool,
}

/// One or more names bound to a value.
#[derive(Clone, Debug)]
pub struct Binding {
    /// At least one.
    pub names: Vec<Ident>,
    /// The value.
    pub value: Expr,
}

/// A parameter of a module or function.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name.
    pub name: Ident,
    /// What it must be.
    pub ty: Option<TypeExpr>,
    /// What it is when not given; may use the parameters before it.
    pub default: Option<Expr>,
}

/// The type of a parameter.
#[derive(Clone, Debug)]
pub enum TypeExpr {
    /// `int?`, `module`.
    Named {
        /// `int`, `float`, `bool`, `string`, `list`, `mapping`, `module`.
        name: Ident,
        /// Whether `none` is one too.
        optional: bool,
    },
    /// `{'head', 'projection'}`.
    Choice {
        /// The strings it may be.
        options: Vec<Arc<str>>,
        /// Whether `none` is one too.
        optional: bool,
    },
    /// `i64[tokens]`.
    Tensor {
        /// Element type.
        dtype: DType,
        /// A name that is no size is a ragged axis.
        dims: Vec<Expr>,
    },
}

/// An expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// What it is.
    pub kind: Arc<ExprKind>,
    /// The place.
    pub span: Span,
}

/// The kinds of expression.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is the form that its name and fields say")]
pub enum ExprKind {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Mapping(Vec<(Ident, Expr)>),
    /// `[body for variable in list]`.
    Comprehension {
        body: Expr,
        variable: Ident,
        list: Expr,
    },
    If {
        condition: Expr,
        then: Expr,
        otherwise: Expr,
    },
    Not(Expr),
    Neg(Expr),
    Binary {
        op: BinOp,
        left: Expr,
        right: Expr,
    },
    Call {
        callee: Expr,
        args: Vec<Arg>,
    },
    Index {
        base: Expr,
        indices: Vec<Expr>,
    },
    Member {
        base: Expr,
        name: Ident,
    },
    IsNone {
        value: Expr,
        negated: bool,
    },
}

/// An argument of a call.
#[derive(Debug)]
pub struct Arg {
    /// `name = value`.
    pub name: Option<Ident>,
    /// The value.
    pub value: Expr,
}

/// Binary operators, from the loosest to the tightest group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the operator it is named after")]
pub enum BinOp {
    Coalesce,
    Or,
    And,
    In,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Range,
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Rem,
    Pow,
}

impl BinOp {
    /// As written.
    pub fn symbol(self) -> &'static str {
        match self {
            BinOp::Coalesce => "??",
            BinOp::Or => "or",
            BinOp::And => "and",
            BinOp::In => "in",
            BinOp::Eq => "==",
            BinOp::Ne => "!=",
            BinOp::Lt => "<",
            BinOp::Le => "<=",
            BinOp::Gt => ">",
            BinOp::Ge => ">=",
            BinOp::Range => "..",
            BinOp::Add => "+",
            BinOp::Sub => "-",
            BinOp::Mul => "*",
            BinOp::Div => "/",
            BinOp::FloorDiv => "//",
            BinOp::Rem => "%",
            BinOp::Pow => "^",
        }
    }
}
