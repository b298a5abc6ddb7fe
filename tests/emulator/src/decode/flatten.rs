//! A kernel's body to a flat program: scopes opened and closed, labels resolved, device functions inlined where they are called
//! (PTX ISA, sections 5.4.5, 7 and 9.7.12). Parameters of calls become local memory that caller and callee share.

use std::collections::HashMap;

use super::context::{Context, Name, Scope};
use super::instruction;
use super::program::{Constant, Guard, Inst, Op, Pc, Program};
use super::tensor::Tensor;
use super::types::Ty;
use crate::ptx::ast::{Function, Instruction, Operand, Space, Statement, Text};
use crate::ptx::parser::Failure;

/// Decodes the kernel.
pub(crate) fn flatten(text: &Text, kernel: &Function) -> Result<Program, Failure> {
    let mut cx = Context::new();
    let at = |line| move |message| (line, message);
    let mentioned = mentioned(text, kernel);
    for (index, variable) in text.variables.iter().enumerate() {
        match variable.space {
            // Only what a kernel uses takes its shared memory.
            Space::Shared if !mentioned.contains(&variable.name.as_str()) => {}
            Space::Shared => cx.variable(variable).map_err(at(variable.line))?,
            space => cx
                .declare(&variable.name, Name::Variable(space, Constant::Global(index, 0)))
                .map_err(at(variable.line))?,
        }
    }
    cx.scopes.push(Scope { closed: true, ..Scope::default() });
    let (mut param_offsets, mut param_bytes) = (Vec::new(), 0u32);
    for param in &kernel.params {
        let bytes = param.bytes.ok_or((param.line, format!("{} has no size", param.name)))?;
        let offset = param_bytes.next_multiple_of(param.align.max(1) as u32);
        param_offsets.push(offset);
        param_bytes = offset + bytes as u32;
        let name = Name::Variable(Space::Param, Constant::Bits(offset.into()));
        cx.declare(&param.name, name).map_err(at(param.line))?;
    }
    let mut flattener = Flattener { text, cx, calls: vec![kernel.name.clone()], returns: None, shared: HashMap::new() };
    let body = kernel.body.as_ref().ok_or((kernel.line, format!("{} has no body", kernel.name)))?;
    flattener.block(body).map_err(|(line, message)| (if line == 0 { kernel.line } else { line }, message))?;
    flattener.push(Op::Exit, kernel.line);
    let mut cx = flattener.cx;
    let labels = cx.labels;
    let resolve = |label: &mut Pc| -> Result<(), Failure> {
        *label = labels[*label as usize].ok_or((kernel.line, "a label is declared nowhere".to_owned()))?;
        Ok(())
    };
    for inst in &mut cx.code {
        match &mut inst.op {
            Op::Branch(target) => resolve(target)?,
            Op::BranchIndexed(_, targets) => targets.iter_mut().try_for_each(resolve)?,
            _ => {}
        }
    }
    mark_dirty(&mut cx.code);
    let is_strong = |op: &Op| match op {
        Op::Load(access) | Op::Store(access) => access.strong && access.space != Space::Shared,
        _ => false,
    };
    let speaks = cx.code.iter().any(|inst| is_strong(&inst.op));
    let is_change = |op: &Op| matches!(op, Op::Atomic(atomic) if atomic.space != Space::Shared);
    let changes = cx.code.iter().any(|inst| is_change(&inst.op));
    Ok(Program {
        code: cx.code,
        constants: cx.constants,
        rows: cx.rows.len(),
        shared_bytes: cx.shared_bytes,
        dynamic_shared: crate::exec::shared::BASE + cx.shared_bytes.next_multiple_of(cx.dynamic_shared.unwrap_or(16)),
        local_bytes: cx.local_bytes,
        params: kernel.params.clone(),
        param_offsets,
        param_bytes,
        speaks,
        changes,
    })
}

/// Notes which instructions access registers that `wgmma` uses.
fn mark_dirty(code: &mut [Inst]) {
    let product = |op: &Op| matches!(op, Op::Tensor(t) if matches!(**t, Tensor::Wgmma(_)));
    let mut used: Vec<_> = code.iter().filter(|i| product(&i.op)).flat_map(|i| i.registers.iter().copied()).collect();
    used.sort_unstable();
    used.dedup();
    if used.is_empty() {
        return;
    }
    for inst in code.iter_mut().filter(|i| !product(&i.op)) {
        inst.dirties = inst.registers.iter().filter(|r| used.binary_search(r).is_ok()).copied().collect();
    }
}

/// All names that a function and what it calls mention.
fn mentioned<'t>(text: &'t Text, kernel: &'t Function) -> Vec<&'t str> {
    fn operand<'t>(o: &'t Operand, names: &mut Vec<&'t str>) {
        match o {
            Operand::Name(name) | Operand::Offset(name, _) => names.push(name),
            Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|o| operand(o, names)),
            Operand::Address(base, _, more) => {
                operand(base, names);
                more.iter().for_each(|o| operand(o, names));
            }
            _ => {}
        }
    }
    fn statements<'t>(body: &'t [Statement], names: &mut Vec<&'t str>) {
        for statement in body {
            match statement {
                Statement::Block(inner) => statements(inner, names),
                Statement::Instruction(i) => i.operands.iter().for_each(|o| operand(o, names)),
                _ => {}
            }
        }
    }
    let (mut names, mut visited) = (Vec::new(), vec![kernel.name.as_str()]);
    statements(kernel.body.as_deref().unwrap_or_default(), &mut names);
    while let Some(f) =
        text.functions.iter().find(|f| names.contains(&f.name.as_str()) && !visited.contains(&f.name.as_str()))
    {
        visited.push(&f.name);
        statements(f.body.as_deref().unwrap_or_default(), &mut names);
    }
    names
}

struct Flattener<'t> {
    text: &'t Text,
    cx: Context,
    /// The functions that are being inlined.
    calls: Vec<String>,
    /// Where `ret` goes, in a function that was called.
    returns: Option<usize>,
    /// Shared variables of functions, by the line of their declaration and their name.
    shared: HashMap<(u32, String), Name>,
}

impl Flattener<'_> {
    fn push(&mut self, op: Op, line: u32) {
        self.cx.code.push(Inst {
            guard: None,
            op,
            line,
            registers: Box::default(),
            results: 0,
            dirties: Box::default(),
        });
    }

    fn new_label(&mut self) -> usize {
        self.cx.labels.push(None);
        self.cx.labels.len() - 1
    }

    fn place(&mut self, label: usize) {
        self.cx.labels[label] = Some(self.cx.code.len() as Pc);
    }

    /// The statements of a block, in the innermost scope.
    fn block(&mut self, body: &[Statement]) -> Result<(), Failure> {
        for statement in body {
            if let Statement::Label(name) = statement {
                let label = self.new_label();
                if let Some(scope) = self.cx.scopes.last_mut() {
                    scope.labels.insert(name.clone(), label);
                }
            }
        }
        for statement in body {
            self.statement(statement)?;
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Statement) -> Result<(), Failure> {
        match statement {
            Statement::Registers(registers) => {
                for register in registers {
                    let at = |message| (register.line, message);
                    let ty = Ty::parse(&register.ty)
                        .filter(|ty| *ty != Ty::B128)
                        .ok_or_else(|| at(format!("no registers of type .{}", register.ty)))?;
                    match register.count {
                        None => {
                            let reg = self.cx.register(ty);
                            self.cx.declare(&register.name, Name::Register(reg)).map_err(at)?;
                        }
                        Some(count) => {
                            for index in 0..count {
                                let reg = self.cx.register(ty);
                                let name = format!("{}{index}", register.name);
                                self.cx.declare(&name, Name::Register(reg)).map_err(at)?;
                            }
                        }
                    }
                }
                Ok(())
            }
            Statement::Variable(variable) => {
                let at = |message| (variable.line, message);
                // Shared memory is one for all calls of a function.
                let key = (variable.space == Space::Shared).then(|| (variable.line, variable.name.clone()));
                if let Some(name) = key.as_ref().and_then(|key| self.shared.get(key)).cloned() {
                    return self.cx.declare(&variable.name, name).map_err(at);
                }
                self.cx.variable(variable).map_err(at)?;
                if let (Some(key), Some(name)) = (key, self.cx.name(&variable.name)) {
                    self.shared.insert(key, name.clone());
                }
                Ok(())
            }
            Statement::Targets(name, targets) => {
                self.cx.declare(name, Name::Targets(targets.clone())).map_err(|message| (0, message))
            }
            Statement::Label(name) => {
                let label = self.cx.label(name).map_err(|message| (0, message))?;
                self.place(label);
                Ok(())
            }
            Statement::Block(inner) => {
                self.cx.scopes.push(Scope::default());
                let done = self.block(inner);
                self.cx.scopes.pop();
                done
            }
            Statement::Instruction(i) => match self.instruction(i) {
                // What failed inside of a call has its own line.
                Err((0, message)) => Err((i.line, message)),
                other => other,
            },
        }
    }

    /// Decodes an instruction; line 0 of a failure stands for its own line.
    fn instruction(&mut self, i: &Instruction) -> Result<(), Failure> {
        let own = |message: String| (0, message);
        let guard = match &i.guard {
            None => None,
            Some((name, negated)) => {
                let predicate = self.cx.reg(&Operand::Name(name.clone())).map_err(own)?;
                if self.cx.declared(predicate) != Some(Ty::Pred) {
                    return Err(own(format!("{name} is not a predicate")));
                }
                Some(Guard { predicate, negated: *negated })
            }
        };
        let plain = |allowed: &[&str]| match i.modifiers.iter().find(|m| !allowed.contains(&m.as_str())) {
            None => Ok(()),
            Some(other) => Err(own(format!("the modifier .{other} is not supported here"))),
        };
        let op = match (i.name.as_str(), &i.operands[..]) {
            ("bra", [Operand::Name(target)]) => {
                plain(&["uni"])?;
                Op::Branch(self.cx.label(target).map_err(own)? as Pc)
            }
            ("brx", [index, Operand::Name(list)]) => {
                plain(&["idx", "uni"])?;
                let index = self.cx.source(index, Ty::U32).map_err(own)?;
                let Some(Name::Targets(names)) = self.cx.name(list).cloned() else {
                    return Err(own(format!("{list} is not a list of targets")));
                };
                let targets = names.iter().map(|n| self.cx.label(n).map(|l| l as Pc));
                Op::BranchIndexed(index, targets.collect::<Result<_, _>>().map_err(own)?)
            }
            ("ret", []) if self.returns.is_some() => {
                plain(&["uni"])?;
                Op::Branch(self.returns.unwrap_or_default() as Pc)
            }
            ("ret" | "exit", []) => {
                plain(&["uni"])?;
                Op::Exit
            }
            ("call", operands) => {
                plain(&["uni"])?;
                return self.guarded_call(i, operands, guard);
            }
            _ => {
                let decoded = instruction::decode(&mut self.cx, i).map_err(own)?;
                let registers: Vec<_> = decoded.results.iter().chain(&decoded.sources).copied().collect();
                let inst = Inst {
                    guard,
                    op: decoded.op,
                    line: i.line,
                    registers: registers.into(),
                    results: decoded.results.len(),
                    dirties: Box::default(),
                };
                self.cx.code.push(inst);
                return Ok(());
            }
        };
        let registers = match &op {
            Op::BranchIndexed(index, _) => Box::from([*index]),
            _ => Box::default(),
        };
        self.cx.code.push(Inst { guard, op, line: i.line, registers, results: 0, dirties: Box::default() });
        Ok(())
    }

    /// A call that not all lanes make jumps over the inlined body.
    fn guarded_call(&mut self, i: &Instruction, operands: &[Operand], guard: Option<Guard>) -> Result<(), Failure> {
        let over = self.new_label();
        if let Some(Guard { predicate, negated }) = guard {
            let guard = Some(Guard { predicate, negated: !negated });
            let op = Op::Branch(over as Pc);
            self.cx.code.push(Inst {
                guard,
                op,
                line: i.line,
                registers: Box::default(),
                results: 0,
                dirties: Box::default(),
            });
        }
        self.call(operands)?;
        self.place(over);
        Ok(())
    }

    fn call(&mut self, operands: &[Operand]) -> Result<(), Failure> {
        let own = |message: String| (0, message);
        let (returned, name, given) = match operands {
            [Operand::List(returned), Operand::Name(name), Operand::List(given)] => (&returned[..], name, &given[..]),
            [Operand::List(returned), Operand::Name(name)] => (&returned[..], name, &[][..]),
            [Operand::Name(name), Operand::List(given)] => (&[][..], name, &given[..]),
            [Operand::Name(name)] => (&[][..], name, &[][..]),
            _ => return Err(own("only direct calls are supported".to_owned())),
        };
        let function = self.text.functions.iter().find(|f| &f.name == name);
        let function = function.ok_or_else(|| own(format!("there is no function {name}")))?;
        let Some(body) = &function.body else { return Err(own(format!("{name} has no body"))) };
        if self.calls.contains(name) {
            return Err(own(format!("{name} calls itself, which is not supported")));
        }
        if returned.len() != function.returns.len() || given.len() != function.params.len() {
            return Err(own(format!("{name} takes another number of parameters")));
        }
        let mut scope = Scope { closed: true, ..Scope::default() };
        for (operand, variable) in returned.iter().chain(given).zip(function.returns.iter().chain(&function.params)) {
            let Operand::Name(passed) = operand else { return Err(own("parameters are variables in .param".into())) };
            match self.cx.name(passed) {
                Some(Name::Variable(Space::Local, at)) => {
                    scope.names.insert(variable.name.clone(), Name::Variable(Space::Local, *at));
                }
                _ => return Err(own(format!("{passed} is not a variable in .param"))),
            }
        }
        let end = self.new_label();
        let outer = self.returns.replace(end);
        self.calls.push(name.clone());
        self.cx.scopes.push(scope);
        self.block(body)?;
        self.cx.scopes.pop();
        self.calls.pop();
        self.returns = outer;
        self.place(end);
        Ok(())
    }
}
