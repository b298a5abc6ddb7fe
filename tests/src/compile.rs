//! A reference case, compiled and loaded: the artifact that `xfc compile` would write, in memory, with the case's checkpoint.
//!
//! Artifacts are compiled once a process for each case and set of targets, and kernels once for all suites ([`known`]). [`Runner`] is a session with the
//! few calls that suites need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use xfc_codegen::driver::{Options, compile};
use xfc_codegen::kernels::{Known, build_of};
use xfc_codegen::target;
use xfc_runtime::artifact::Artifact;
use xfc_runtime::cache::SequenceId;
use xfc_runtime::model::{Model, ModelOptions};
use xfc_runtime::session::{Session, SessionOptions};
use xfc_runtime::step::{InputData, StepInput, StepOutput, Wanted};
use xfc_runtime::weights::Checkpoint;

use crate::case::{Case, Layout};
use crate::command::path;
use crate::{Result, model};

/// The targets that every machine that runs the tests can compile for.
pub const TARGETS: [&str; 2] = ["cpu", "cpu:x86-64-v3"];

/// The folder of the kernels that this process and the commands it runs have compiled so far: models and programs share many. It lies beside the
/// commands, and is thrown away by the next process when this one is gone.
pub fn kernels() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let suite = std::env::current_exe().unwrap_or_default();
        let all = suite.ancestors().nth(2).unwrap_or(Path::new(".")).join("suite-kernels");
        for left in fs::read_dir(&all).into_iter().flatten().flatten() {
            if !Path::new("/proc").join(left.file_name()).exists() {
                let _ = fs::remove_dir_all(left.path());
            }
        }
        let own = all.join(std::process::id().to_string());
        // Of another process that had this number.
        let _ = fs::remove_dir_all(&own);
        fs::create_dir_all(&own).expect("a folder can be made beside the commands");
        fs::write(own.join(Known::BUILD), build()).expect("a file can be written there");
        own
    });
    &FOLDER
}

/// What is in that folder.
pub fn known() -> &'static Arc<Known> {
    static KNOWN: LazyLock<Arc<Known>> =
        LazyLock::new(|| Arc::new(Known::in_folder(kernels().to_owned(), &build()).unwrap_or_default()));
    &KNOWN
}

/// The build of the commands, which is that of the suite.
fn build() -> String {
    path("xfc").map(|xfc| build_of(&xfc)).unwrap_or_default()
}

/// Compiling as ever, but for kernels that are known.
pub fn sharing() -> Options {
    Options { known: Some(Arc::clone(known())), ..Options::default() }
}

/// Compiles the model of a case for `targets`.
pub fn artifact(case: &Case, targets: &[&str], options: &Options) -> Result<Vec<u8>> {
    fresh_artifact(case, targets, &Options { known: Some(Arc::clone(known())), ..options.clone() })
}

/// The same, all of it compiled again.
pub fn fresh_artifact(case: &Case, targets: &[&str], options: &Options) -> Result<Vec<u8>> {
    let model = model::expand(case)?;
    let targets = targets.iter().map(|name| target::parse(name)).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(compile(&model, &case.name, &targets, options)?.bytes)
}

/// The artifact of a case for all [`TARGETS`], compiled once.
pub fn compiled(case: &Case) -> Result<Arc<Artifact>> {
    static COMPILED: Mutex<BTreeMap<String, Arc<Artifact>>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(artifact) = compiled.get(&case.name) {
        return Ok(Arc::clone(artifact));
    }
    let artifact = Arc::new(Artifact::from_bytes(artifact(case, &TARGETS, &Options::default())?)?);
    compiled.insert(case.name.clone(), Arc::clone(&artifact));
    Ok(artifact)
}

/// Loads the compiled case for one target with so many threads.
pub fn load(case: &Case, target: &str, threads: usize) -> Result<Arc<Model>> {
    let checkpoint = case.checkpoint(Layout::Single)?;
    load_from(case, target, threads, &Checkpoint::open(checkpoint.path())?)
}

/// Loads the compiled case with the weights of a checkpoint.
pub fn load_from(case: &Case, target: &str, threads: usize, checkpoint: &Checkpoint) -> Result<Arc<Model>> {
    let artifact = compiled(case)?;
    // `cpu` means this machine, under whatever name the artifact has it.
    let target = target::parse(target)?.name().to_owned();
    let options = ModelOptions { threads: Some(threads), target: Some(target), ..ModelOptions::default() };
    Ok(Model::load(&artifact, checkpoint, &options)?)
}

/// Sequences of a loaded model.
#[derive(Debug)]
pub struct Runner {
    /// For what the suites do themselves: fork, truncate, free.
    pub session: Session,
    /// What each new sequence is given before its tokens.
    pub source: Vec<(String, InputData)>,
    token_input: String,
}

fn step_of(sequence: SequenceId, case: &Case) -> StepInput {
    StepInput { sequence, inputs: case.all_inputs().into_iter().collect(), wanted: Wanted::All }
}

impl Runner {
    /// A session of at most `sequences` sequences.
    pub fn new(model: &Arc<Model>, sequences: u32) -> Result<Self> {
        let options =
            SessionOptions { max_sequences: sequences, context_tokens: Some(64), ..SessionOptions::default() };
        let token_input = model.token_input().map_or_else(String::new, |input| input.name.clone());
        Ok(Runner { session: model.session(&options)?, source: Vec::new(), token_input })
    }

    /// A session of at most `sequences` sequences, which have the case's source where it has one.
    pub fn of(case: &Case, model: &Arc<Model>, sequences: u32) -> Result<Self> {
        Ok(Runner { source: case.source().into_iter().collect(), ..Runner::new(model, sequences)? })
    }

    /// A new sequence, with its source.
    pub fn add(&mut self) -> Result<SequenceId> {
        let sequence = self.session.add_sequence()?;
        if !self.source.is_empty() {
            self.session.step(&[StepInput { sequence, inputs: self.source.clone(), wanted: Wanted::None }])?;
        }
        Ok(sequence)
    }

    /// One step of one sequence over all inputs of a case: the logits of every token.
    pub fn step_inputs(&mut self, sequence: SequenceId, inputs: &BTreeMap<String, Vec<i64>>) -> Result<Vec<f32>> {
        let inputs = inputs.iter().map(|(name, ids)| (name.clone(), InputData::Ints(ids.clone()))).collect();
        let step = StepInput { sequence, inputs, wanted: Wanted::All };
        Ok(self.run(&[step])?.remove(0))
    }

    /// One step of one sequence over all inputs of a case, images too: the logits.
    pub fn step_case(&mut self, sequence: SequenceId, case: &Case) -> Result<Vec<f32>> {
        Ok(self.step_cases(&[(sequence, case)])?.remove(0))
    }

    /// The same: every output by its name.
    pub fn outputs_of(&mut self, sequence: SequenceId, case: &Case) -> Result<BTreeMap<String, Vec<f32>>> {
        let outputs = self.session.step(&[step_of(sequence, case)])?;
        let values = |o: &StepOutput| Ok((o.name.clone(), o.rows_of(0).ok_or("a sequence has no rows")?.to_vec()));
        outputs.outputs.iter().map(values).collect()
    }

    /// One step of several sequences, each over all inputs of a case.
    pub fn step_cases(&mut self, parts: &[(SequenceId, &Case)]) -> Result<Vec<Vec<f32>>> {
        let parts: Vec<StepInput> = parts.iter().map(|(sequence, case)| step_of(*sequence, case)).collect();
        self.run(&parts)
    }

    /// One step of several sequences: the logits of every token of each.
    pub fn step(&mut self, parts: &[(SequenceId, &[i64])]) -> Result<Vec<Vec<f32>>> {
        let input = |ids: &[i64]| vec![(self.token_input.clone(), InputData::Ints(ids.to_vec()))];
        let step =
            |&(sequence, ids): &(SequenceId, &[i64])| StepInput { sequence, inputs: input(ids), wanted: Wanted::All };
        let parts: Vec<StepInput> = parts.iter().map(step).collect();
        self.run(&parts)
    }

    fn run(&mut self, step: &[StepInput]) -> Result<Vec<Vec<f32>>> {
        let outputs = self.session.step(step)?;
        let logits = outputs.get("logits").ok_or("there is no output `logits`")?;
        (0..step.len()).map(|i| Ok(logits.rows_of(i).ok_or("a sequence has no rows")?.to_vec())).collect()
    }
}
