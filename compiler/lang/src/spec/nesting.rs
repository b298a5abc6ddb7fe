//! What can lie in what: which instances and parameters the definitions of a card give to each module, whatever the sizes are.
//!
//! Given the wiring and the library, [`Nesting::lost`] finds the first component of a path that nothing before it can hold. What is read is what
//! is written: both sides of an `if`, and in the place of an option whatever any call passes. Where that says nothing, nothing is refused.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ast::{BinOp, Expr, ExprKind, Function, Item, Module, Param};

/// Deepest chain of bindings that is followed.
const DEEPEST: usize = 64;

/// A body of items: the card with the library, or a module's.
struct Body {
    parent: Option<usize>,
    module: Option<Arc<Module>>,
    items: Vec<Item>,
}

/// The modules that a value may be, by their bodies, and whether their options are given. Not a module, where there are none.
type Held = BTreeSet<(usize, bool)>;

/// What lies in a module: by its name, the modules that it may be.
type Children = BTreeMap<Arc<str>, BTreeSet<usize>>;

/// Everything that the definitions say about instances in instances.
pub(super) struct Nesting {
    bodies: Vec<Body>,
    /// What calls pass to options.
    passed: RefCell<Option<BTreeSet<usize>>>,
    children: RefCell<BTreeMap<usize, Children>>,
}

/// What a name is where it stands.
enum Found {
    Item(usize, Item),
    Option,
    Input,
}

impl Nesting {
    /// Of what a card defines, with what it extends, and the library.
    pub(super) fn of(wiring: &[Item], library: &[Item]) -> Nesting {
        let items = wiring.iter().chain(library).cloned().collect();
        let mut bodies = vec![Body { parent: None, module: None, items }];
        let mut at = 0;
        while at < bodies.len() {
            let modules: Vec<Arc<Module>> = bodies[at]
                .items
                .iter()
                .filter_map(|item| if let Item::Module(module) = item { Some(module.clone()) } else { None })
                .collect();
            bodies.extend(modules.into_iter().map(|module| Body {
                parent: Some(at),
                items: module.items.clone(),
                module: Some(module),
            }));
            at += 1;
        }
        Nesting { bodies, passed: RefCell::default(), children: RefCell::default() }
    }

    /// The first component of the last of these patterns, each inside the one before, that what stands before it cannot hold; and the component
    /// before it.
    pub(super) fn lost<'p>(&self, within: &[Vec<&'p str>], key: &[&'p str]) -> Option<(&'p str, &'p str)> {
        let mut state: Option<BTreeSet<usize>> = None;
        for (i, pattern) in within.iter().map(Vec::as_slice).chain([key]).enumerate() {
            // A pattern matches anywhere inside what encloses it.
            let inside = state.as_ref().map(|modules| self.below(modules));
            let mut before = if i > 0 { within.get(i - 1).and_then(|p| p.last().copied()) } else { None };
            state = None;
            for (at, component) in pattern.iter().enumerate() {
                let holders = if at == 0 { inside.as_ref() } else { state.as_ref() };
                let any_element = component.contains('*') || component.bytes().all(|b| b.is_ascii_digit());
                let next = match (holders, any_element) {
                    (_, true) if *component == "**" || at == 0 => return None,
                    // The number of an element; `*` may also be a part by its name, but of a list.
                    (Some(holders), true) if *component != "*" || before.is_some_and(|b| self.is_list(b)) => {
                        holders.clone()
                    }
                    (Some(holders), true) => {
                        let inner = holders.iter().flat_map(|m| self.children(*m).into_values().flatten());
                        holders.iter().copied().chain(inner).collect()
                    }
                    (None, true) => return None,
                    (Some(holders), false) => {
                        let found: Vec<BTreeSet<usize>> =
                            holders.iter().filter_map(|m| self.children(*m).remove(*component)).collect();
                        if found.is_empty() {
                            let is_last = i == within.len();
                            return before.filter(|_| is_last).map(|before| (*component, before));
                        }
                        found.into_iter().flatten().collect()
                    }
                    (None, false) => self.called(component),
                };
                before = Some(component);
                // What is no module as far as can be told may still be one.
                if next.is_empty() && at + 1 < pattern.len() {
                    return None;
                }
                state = Some(next);
            }
            if state.as_ref().is_none_or(BTreeSet::is_empty) {
                return None;
            }
        }
        None
    }

    /// The names of what can hold a component.
    pub(super) fn holders(&self, component: &str) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for at in 0..self.bodies.len() {
            for (name, modules) in self.children(at) {
                let holds = modules.iter().any(|m| *m != at && self.children(*m).contains_key(component));
                if holds && !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        // Instances rather than what they are instances of, where there are some.
        let is_instance = |name: &Arc<str>| {
            let own = |body: &Body| {
                body.items.iter().any(|i| matches!(i, Item::Binding(b) if b.names.iter().any(|n| n.name == *name)))
            };
            self.bodies.iter().any(own)
        };
        let instances: Vec<Arc<str>> = names.iter().filter(|name| is_instance(name)).cloned().collect();
        if instances.is_empty() { names } else { instances }
    }

    /// These modules and everything in them.
    fn below(&self, modules: &BTreeSet<usize>) -> BTreeSet<usize> {
        let (mut seen, mut stack) = (BTreeSet::new(), modules.iter().copied().collect::<Vec<_>>());
        while let Some(at) = stack.pop() {
            if seen.insert(at) {
                stack.extend(self.children(at).into_values().flatten());
            }
        }
        seen
    }

    /// Whether everything that is called so is written as a list.
    fn is_list(&self, name: &str) -> bool {
        let items = self.bodies.iter().flat_map(|body| &body.items);
        let mut called = items.filter(|item| item.names().iter().any(|n| *n.name == *name)).peekable();
        let list = |item: &Item| {
            let Item::Binding(binding) = item else { return false };
            matches!(&*binding.value.kind, ExprKind::List(_) | ExprKind::Comprehension { .. })
        };
        called.peek().is_some() && called.all(list)
    }

    /// What is called so anywhere.
    fn called(&self, name: &str) -> BTreeSet<usize> {
        (0..self.bodies.len()).filter_map(|at| self.children(at).remove(name)).flatten().collect()
    }

    /// What lies in a module: by its name, the modules that it may be.
    fn children(&self, at: usize) -> Children {
        if let Some(known) = self.children.borrow().get(&at) {
            return known.clone();
        }
        let mut names: BTreeSet<Arc<str>> = BTreeSet::new();
        let body = &self.bodies[at];
        for item in &body.items {
            names.extend(item.names().iter().map(|n| n.name.clone()));
        }
        let mut mentioned: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut functions: BTreeSet<*const Function> = BTreeSet::new();
        if let Some(module) = &body.module {
            names.extend(module.options.iter().chain(&module.inputs).map(|p| p.name.name.clone()));
            mention(&module.result, &mut mentioned);
            module.options.iter().chain(&module.inputs).for_each(|p| mention_default(p, &mut mentioned));
            for item in &body.items {
                match item {
                    Item::Binding(binding) => mention(&binding.value, &mut mentioned),
                    Item::Function(function) => mention(&function.body, &mut mentioned),
                    Item::Module(_) => {}
                }
            }
        }
        // What is applied unbound has its own name, also where a function applies it.
        let mut stack: Vec<Arc<str>> = mentioned.iter().cloned().collect();
        while let Some(name) = stack.pop() {
            for found in self.resolve(at, &name) {
                if let Found::Item(_, Item::Function(function)) = found
                    && functions.insert(Arc::as_ptr(&function))
                {
                    let mut more = BTreeSet::new();
                    mention(&function.body, &mut more);
                    stack.extend(more.into_iter().filter(|n| mentioned.insert(n.clone())));
                }
            }
        }
        names.extend(mentioned);
        let made: Children = names.into_iter().map(|name| (name.clone(), self.named(at, &name))).collect();
        self.children.borrow_mut().insert(at, made.clone());
        made
    }

    /// The modules that a name stands for.
    fn named(&self, at: usize, name: &str) -> BTreeSet<usize> {
        self.name(at, name, 0).into_iter().map(|(module, _)| module).collect()
    }

    fn resolve(&self, mut at: usize, name: &str) -> Vec<Found> {
        loop {
            let body = &self.bodies[at];
            let items = body.items.iter().filter(|item| item.names().iter().any(|n| *n.name == *name));
            let mut found: Vec<Found> = items.map(|item| Found::Item(at, item.clone())).collect();
            if let Some(module) = &body.module {
                let among = |params: &[Param]| params.iter().any(|p| *p.name.name == *name);
                found.extend(among(&module.options).then_some(Found::Option));
                found.extend(among(&module.inputs).then_some(Found::Input));
            }
            match body.parent {
                _ if !found.is_empty() => return found,
                Some(parent) => at = parent,
                None => return found,
            }
        }
    }

    fn name(&self, at: usize, name: &str, depth: usize) -> Held {
        let mut held = Held::new();
        for found in self.resolve(at, name) {
            match found {
                Found::Item(scope, Item::Module(module)) => {
                    let is = |b: &Body| {
                        b.parent == Some(scope) && b.module.as_ref().is_some_and(|m| Arc::ptr_eq(m, &module))
                    };
                    let own = self.bodies.iter().position(is);
                    held.extend(own.map(|own| (own, module.options.is_empty())));
                }
                Found::Item(scope, Item::Binding(binding)) => held.extend(self.held(scope, &binding.value, depth + 1)),
                Found::Item(_, Item::Function(_)) | Found::Input => {}
                Found::Option => held.extend(self.passed().into_iter().map(|m| (m, true))),
            }
        }
        held
    }

    /// The modules that an expression may be.
    fn held(&self, at: usize, expr: &Expr, depth: usize) -> Held {
        if depth > DEEPEST {
            return Held::new();
        }
        let of = |e: &Expr| self.held(at, e, depth + 1);
        let all = |list: &[Expr]| list.iter().flat_map(of).collect();
        match &*expr.kind {
            ExprKind::Name(name) => self.name(at, name, depth),
            ExprKind::List(items) | ExprKind::Tuple(items) => all(items),
            ExprKind::Mapping(entries) => entries.iter().flat_map(|(_, e)| of(e)).collect(),
            ExprKind::Comprehension { body, .. } => of(body),
            ExprKind::If { then, otherwise, .. } => of(then).into_iter().chain(of(otherwise)).collect(),
            ExprKind::Binary { op: BinOp::Coalesce | BinOp::Add, left, right } => {
                of(left).into_iter().chain(of(right)).collect()
            }
            ExprKind::Index { base, .. } | ExprKind::Member { base, .. } => of(base),
            ExprKind::Call { callee, args } => {
                let mut held = Held::new();
                if let ExprKind::Name(name) = &*callee.kind {
                    for found in self.resolve(at, name) {
                        if let Found::Item(scope, Item::Function(function)) = found {
                            held.extend(self.held(scope, &function.body, depth + 1));
                            // What is passed to a function may be what it gives.
                            held.extend(args.iter().flat_map(|arg| of(&arg.value)));
                        }
                    }
                }
                for (module, given) in of(callee) {
                    let options = self.bodies[module].module.as_ref().map(|m| m.options.as_slice()).unwrap_or_default();
                    let more = args
                        .iter()
                        .all(|arg| arg.name.as_ref().is_some_and(|n| options.iter().any(|o| o.name.name == n.name)));
                    // Once its options are given, it is applied, and gives tensors.
                    if !given || more {
                        held.insert((module, true));
                    }
                }
                held
            }
            _ => Held::new(),
        }
    }

    /// What any call passes, and what options are by themselves: an option may hold any of these.
    fn passed(&self) -> BTreeSet<usize> {
        if let Some(known) = &*self.passed.borrow() {
            return known.clone();
        }
        // Of what passes on an option, nothing new comes.
        *self.passed.borrow_mut() = Some(BTreeSet::new());
        let mut passed = BTreeSet::new();
        for (at, body) in self.bodies.iter().enumerate() {
            let mut exprs: Vec<&Expr> = Vec::new();
            for item in &body.items {
                match item {
                    Item::Binding(binding) => exprs.push(&binding.value),
                    Item::Function(function) => exprs.push(&function.body),
                    Item::Module(_) => {}
                }
            }
            if let Some(module) = &body.module {
                exprs.push(&module.result);
                let defaults: Vec<&Expr> = module.options.iter().filter_map(|p| p.default.as_ref()).collect();
                passed.extend(defaults.iter().flat_map(|e| self.held(at, e, 0)).map(|(m, _)| m));
            }
            while let Some(expr) = exprs.pop() {
                if let ExprKind::Call { args, .. } = &*expr.kind {
                    passed.extend(args.iter().flat_map(|arg| self.held(at, &arg.value, 0)).map(|(m, _)| m));
                }
                exprs.extend(parts(expr));
            }
        }
        *self.passed.borrow_mut() = Some(passed.clone());
        self.children.borrow_mut().clear();
        passed
    }
}

/// The expressions in an expression.
fn parts(expr: &Expr) -> Vec<&Expr> {
    match &*expr.kind {
        ExprKind::None | ExprKind::Bool(_) | ExprKind::Int(_) | ExprKind::Float(_) => Vec::new(),
        ExprKind::Str(_) | ExprKind::Name(_) => Vec::new(),
        ExprKind::List(items) | ExprKind::Tuple(items) => items.iter().collect(),
        ExprKind::Mapping(entries) => entries.iter().map(|(_, e)| e).collect(),
        ExprKind::Comprehension { body, list, .. } => vec![body, list],
        ExprKind::If { condition, then, otherwise } => vec![condition, then, otherwise],
        ExprKind::Binary { left, right, .. } => vec![left, right],
        ExprKind::Not(value) | ExprKind::Neg(value) | ExprKind::IsNone { value, .. } => vec![value],
        ExprKind::Call { callee, args } => std::iter::once(callee).chain(args.iter().map(|a| &a.value)).collect(),
        ExprKind::Index { base, indices } => std::iter::once(base).chain(indices).collect(),
        ExprKind::Member { base, .. } => vec![base],
    }
}

fn mention(expr: &Expr, names: &mut BTreeSet<Arc<str>>) {
    let mut exprs = vec![expr];
    while let Some(expr) = exprs.pop() {
        if let ExprKind::Name(name) = &*expr.kind {
            names.insert(name.clone());
        }
        exprs.extend(parts(expr));
    }
}

fn mention_default(param: &Param, names: &mut BTreeSet<Arc<str>>) {
    param.default.iter().for_each(|default| mention(default, names));
}
