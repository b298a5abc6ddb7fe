//! The modifiers of an instruction, taken one by one: what nobody takes is an error.

use super::types::Ty;
use crate::ptx::ast::Instruction;

/// What is left of an instruction's modifiers.
pub(crate) struct Modifiers<'i> {
    left: Vec<&'i str>,
}

impl<'i> Modifiers<'i> {
    pub(crate) fn new(instruction: &'i Instruction) -> Self {
        Self { left: instruction.modifiers.iter().map(String::as_str).collect() }
    }

    /// Takes a modifier, if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        let found = self.left.iter().position(|m| *m == name);
        found.map(|at| self.left.remove(at)).is_some()
    }

    /// Takes the first of these that is there.
    pub(crate) fn one_of<'n>(&mut self, names: &[&'n str]) -> Option<&'n str> {
        names.iter().copied().find(|name| self.take(name))
    }

    pub(crate) fn require(&mut self, name: &str) -> Result<(), String> {
        if self.take(name) { Ok(()) } else { Err(format!("only the form with .{name} is supported")) }
    }

    /// Takes modifiers that say nothing about the result.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Takes the first type.
    pub(crate) fn ty(&mut self) -> Result<Ty, String> {
        let at = self.left.iter().position(|m| Ty::parse(m).is_some()).ok_or("a type is missing")?;
        Ty::parse(self.left.remove(at)).ok_or_else(|| "a type is missing".to_owned())
    }

    /// The modifier in front, taken.
    pub(crate) fn first(&mut self) -> Option<&'i str> {
        if self.left.is_empty() { None } else { Some(self.left.remove(0)) }
    }

    /// All were taken.
    pub(crate) fn finish(self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some(name) => Err(format!("the modifier .{name} is not supported here")),
        }
    }
}
