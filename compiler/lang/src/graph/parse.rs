//! Reads the text form of graphs, `.xg`, that [`print`](super::print) writes.
//!
//! Given any text, it returns a program or the first error with its line and column, and never panics. What it returns is not yet
//! checked: that is [`verify`](super::verify)'s. `#` begins a comment that runs to the end of the line.

use std::collections::HashMap;
use std::sync::Arc;

use thiserror::Error;

use super::blocks::Blocks;
use super::{AxisId, DType, Dim, Graph, InputDecl, Origin, Program, Type, ValueId};
use crate::ops::attributes::{Attributes, parse_number, unquote};
use crate::ops::fused::PARSERS;
use crate::ops::{Core, Op};

/// Text that is not a program.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, lowercase.
    pub message: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Graphs nest this deep at most: a group of rows holds fused operations, which hold graphs of scalars.
const MAX_DEPTH: usize = 8;

/// Reads a program.
pub fn parse(text: &str) -> Result<Program> {
    let mut p = Parser { text, at: 0, axes: Vec::new() };
    let mut extents = Vec::new();
    p.word("program")?;
    let name = p.name()?;
    p.word("axes")?;
    p.expect("[")?;
    while !p.eat("]") {
        let axis = p.name()?;
        if p.axes.contains(&axis) {
            return p.fail(format!("axis '{axis}' is declared twice"));
        }
        p.axes.push(axis);
        extents.push(if p.eat("=") { Some(p.integer()?) } else { None });
        if !p.eat(",") && !p.peek("]") {
            return p.fail("expected ',' or ']'");
        }
    }
    let mut program = Program { name, ..Program::default() };
    while !p.at_end() {
        p.word("graph")?;
        let index = p.integer()?;
        if index != program.graphs.len() as u64 {
            return p.fail(format!("expected graph {}", program.graphs.len()));
        }
        let name = p.name()?;
        let (graph, inputs) = p.graph(name, 0)?;
        if program.graphs.is_empty() {
            program.inputs = inputs;
        } else if let Some(input) = inputs.iter().find(|i| i.default.is_some()) {
            return p.fail(format!("'{}' has a default outside the main graph", input.name));
        }
        program.graphs.push(graph);
    }
    program.axes = p.axes;
    program.extents = extents;
    Ok(program)
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    axes: Vec<String>,
}

impl<'t> Parser<'t> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        let before = &self.text[..self.at];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        Err(ParseError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        })
    }

    fn rest(&mut self) -> &'t str {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return trimmed;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn at_end(&mut self) -> bool {
        self.rest().is_empty()
    }

    fn peek(&mut self, token: &str) -> bool {
        self.rest().starts_with(token)
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.peek(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.eat(token) { Ok(()) } else { self.fail(format!("expected '{token}'")) }
    }

    /// The longest prefix of characters that `accept`s.
    fn run(&mut self, accept: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn identifier(&mut self) -> Result<&'t str> {
        let start = self.at;
        if !self.rest().starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return self.fail("expected a name");
        }
        let word = self.run(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        debug_assert!(self.at > start);
        Ok(word)
    }

    fn word(&mut self, word: &str) -> Result<()> {
        let start = self.at;
        match self.identifier() {
            Ok(found) if found == word => Ok(()),
            _ => {
                self.at = start;
                self.rest();
                self.fail(format!("expected '{word}'"))
            }
        }
    }

    /// The text of a string, with its quotes.
    fn string(&mut self) -> Result<&'t str> {
        let rest = self.rest();
        let mut escaped = false;
        for (i, c) in rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => {
                    self.at += i + 1;
                    return Ok(&rest[..=i]);
                }
                _ => {}
            }
        }
        self.fail("a string without an end")
    }

    fn name(&mut self) -> Result<String> {
        if !self.peek("\"") {
            return self.identifier().map(str::to_string);
        }
        let raw = self.string()?;
        unquote(raw).map_or_else(|| self.fail("a string that cannot be read"), Ok)
    }

    fn integer(&mut self) -> Result<u64> {
        let start = self.at;
        let digits = self.run(|c| c.is_ascii_digit());
        digits.parse().or_else(|_| {
            self.at = start;
            self.rest();
            self.fail("expected an integer")
        })
    }

    fn number_text(&mut self) -> Result<&'t str> {
        let start = self.at;
        let raw = self.run(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
        if parse_number(raw).is_some() {
            return Ok(raw);
        }
        self.at = start;
        self.rest();
        self.fail("expected a number")
    }

    fn ty(&mut self) -> Result<Type> {
        let start = self.at;
        let dtype = match self.identifier()? {
            "f32" => DType::F32,
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            "i64" => DType::I64,
            "i32" => DType::I32,
            "bool" => DType::Bool,
            other => match Blocks::parse(other) {
                Some(blocks) => DType::Blocks(blocks),
                None => {
                    let message = format!("'{other}' is not an element type");
                    self.at = start;
                    self.rest();
                    return self.fail(message);
                }
            },
        };
        let mut dims = Vec::new();
        if self.eat("[") {
            loop {
                dims.push(self.dim()?);
                if !self.eat(",") {
                    break;
                }
            }
            self.expect("]")?;
        }
        Ok(Type { dtype, dims })
    }

    fn dim(&mut self) -> Result<Dim> {
        if self.rest().starts_with(|c: char| c.is_ascii_digit()) {
            return self.integer().map(Dim::Fixed);
        }
        let start = self.at;
        let name = self.name()?;
        if let ("visible" | "rows", true) = (name.as_str(), self.eat("(")) {
            let axis = self.axis()?;
            self.expect(")")?;
            return Ok(if name == "visible" { Dim::Visible(axis) } else { Dim::Rows(axis) });
        }
        self.at = start;
        self.axis().map(Dim::Axis)
    }

    fn axis(&mut self) -> Result<AxisId> {
        let start = self.at;
        let name = self.name()?;
        match self.axes.iter().position(|a| *a == name) {
            Some(i) => Ok(AxisId(i)),
            None => {
                self.at = start;
                self.rest();
                self.fail(format!("'{name}' is not an axis of this program"))
            }
        }
    }

    fn types(&mut self) -> Result<Vec<Type>> {
        let mut types = vec![self.ty()?];
        while self.eat(",") {
            types.push(self.ty()?);
        }
        Ok(types)
    }

    /// `(params) { nodes; return outputs }`.
    fn graph(&mut self, name: String, depth: usize) -> Result<(Graph, Vec<InputDecl>)> {
        if depth > MAX_DEPTH {
            return self.fail("graphs nest too deep");
        }
        let mut graph = Graph::new(name);
        let mut inputs = Vec::new();
        let mut values: HashMap<u64, ValueId> = HashMap::new();
        self.expect("(")?;
        while !self.eat(")") {
            let number = self.defined(&values)?;
            let name = self.name()?;
            self.expect(":")?;
            let ty = self.ty()?;
            let default = if self.eat("=") { parse_number(self.number_text()?) } else { None };
            values.insert(number, graph.add_param(name.clone(), ty.clone()));
            inputs.push(InputDecl { name, ty, default });
            if !self.eat(",") && !self.peek(")") {
                return self.fail("expected ',' or ')'");
            }
        }
        self.expect("{")?;
        while self.peek("%") {
            self.node(&mut graph, &mut values, depth)?;
        }
        self.word("return")?;
        while !self.peek("}") {
            let name = self.name()?;
            self.expect("=")?;
            let value = self.used(&values)?;
            graph.add_output(name, value);
            if !self.eat(",") && !self.peek("}") {
                return self.fail("expected ',' or '}'");
            }
        }
        self.expect("}")?;
        Ok((graph, inputs))
    }

    fn defined(&mut self, values: &HashMap<u64, ValueId>) -> Result<u64> {
        self.expect("%")?;
        let number = self.integer()?;
        if values.contains_key(&number) {
            return self.fail(format!("%{number} is defined twice"));
        }
        Ok(number)
    }

    fn used(&mut self, values: &HashMap<u64, ValueId>) -> Result<ValueId> {
        self.expect("%")?;
        let start = self.at;
        let number = self.integer()?;
        match values.get(&number) {
            Some(value) => Ok(*value),
            None => {
                self.at = start;
                self.fail(format!("%{number} is not defined before its use"))
            }
        }
    }

    fn node(&mut self, graph: &mut Graph, values: &mut HashMap<u64, ValueId>, depth: usize) -> Result<()> {
        let mut results = vec![self.defined(values)?];
        while self.eat(",") {
            results.push(self.defined(values)?);
        }
        self.expect("=")?;
        self.rest();
        let start = self.at;
        let name = self.identifier()?;
        let mut operands = Vec::new();
        if self.peek("%") {
            operands.push(self.used(values)?);
            while self.eat(",") {
                operands.push(self.used(values)?);
            }
        }
        let mut attributes = Attributes::default();
        if self.eat("{") {
            self.attributes(&mut attributes, depth)?;
        }
        self.expect(":")?;
        let types = self.types()?;
        if types.len() != results.len() {
            return self.fail(format!("{} types for {} results", types.len(), results.len()));
        }
        let op = op(name, attributes).or_else(|message| {
            self.at = start;
            self.fail(message)
        })?;
        let node = graph.add_node(op, &operands, types, Origin::default());
        for (port, number) in results.into_iter().enumerate() {
            if values.insert(number, ValueId { node, port }).is_some() {
                return self.fail(format!("%{number} is defined twice"));
            }
        }
        Ok(())
    }

    fn attributes(&mut self, attributes: &mut Attributes, depth: usize) -> Result<()> {
        while !self.eat("}") {
            let key = self.identifier()?.to_string();
            self.expect("=")?;
            if self.peek("(") {
                let (body, _) = self.graph(key.clone(), depth + 1)?;
                attributes.bodies.insert(key, body);
            } else {
                let raw = self.raw()?.to_string();
                attributes.values.insert(key, raw);
            }
            if !self.eat(",") && !self.peek("}") {
                return self.fail("expected ',' or '}'");
            }
        }
        Ok(())
    }

    /// A string, a list, a word or a number, as written.
    fn raw(&mut self) -> Result<&'t str> {
        let rest = self.rest();
        if rest.starts_with('"') {
            return self.string();
        }
        if rest.starts_with('[') {
            let Some(end) = rest.find(']') else {
                return self.fail("a list without an end");
            };
            self.at += end + 1;
            return Ok(&rest[..=end]);
        }
        let raw = self.run(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_'));
        if raw.is_empty() { self.fail("expected a value") } else { Ok(raw) }
    }
}

fn op(name: &str, mut attributes: Attributes) -> std::result::Result<Op, String> {
    let op = match Core::parse(name, &mut attributes)? {
        Some(op) => Op::Core(op),
        None => match PARSERS.iter().find(|(n, _)| *n == name) {
            Some((_, parse)) => parse(&mut attributes)?,
            None => return Err(format!("'{name}' is not an operation")),
        },
    };
    attributes.finish()?;
    Ok(op)
}

impl std::str::FromStr for Program {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self> {
        parse(text)
    }
}

/// Equal meaning by equal text: same operations on the same values, whatever the numbers and origins of the nodes.
impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        self.text(&[]) == other.text(&[])
    }
}

/// Equal text.
impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

/// Two shared operations are equal when they print alike.
pub fn same_op(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::Core(a), Op::Core(b)) => a == b,
        (Op::Fused(x), Op::Fused(y)) => {
            Arc::ptr_eq(x, y) || (x.name() == y.name() && x.attributes() == y.attributes() && x.bodies() == y.bodies())
        }
        _ => false,
    }
}
