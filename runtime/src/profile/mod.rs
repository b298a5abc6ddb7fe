//! Where the time of steps goes: what each worker did when, and what the kernels reached of the machine's limits.
//!
//! ```text
//! device ──recorder──▶ spans ──summary──▶ one row a kernel ──table──▶ text, JSON
//!                        └────trace, flame──▶ Chrome trace, HTML
//! ```
//!
//! A device without a recorder takes one branch a step. With one, each part of a launch that a worker takes costs two readings of the clock.

mod flame;
mod summary;
mod trace;

pub use flame::flame_html;
pub use summary::{Bound, KernelRow, Summary, table};
pub use trace::chrome_trace;

use crate::cost::StepShape;
use crate::device::Step;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What one worker did for one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index into [`Recording::steps`].
    pub step: u32,
    /// Index into [`StepRecord::launches`].
    pub launch: u32,
    /// When the worker began, in nanoseconds since the recorder was made.
    pub begin_ns: u64,
    /// When it was done with its last part.
    pub end_ns: u64,
    /// Time in the kernel; the rest of the span it looked for work.
    pub busy_ns: u64,
    /// Tiles that it did.
    pub tiles: u32,
}

/// One launch of a recorded step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchRecord {
    /// Index into [`Manifest::launches`](crate::artifact::manifest::Manifest::launches).
    pub index: usize,
    /// Index into [`Manifest::kernels`](crate::artifact::manifest::Manifest::kernels).
    pub kernel: usize,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRecord {
    /// Its launches, in order.
    pub launches: Vec<LaunchRecord>,
    /// Its rows and contexts.
    pub shape: StepShape,
    /// When the device was asked to run it.
    pub begin_ns: u64,
    /// When it was done.
    pub end_ns: u64,
}

/// Everything that was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// In order.
    pub steps: Vec<StepRecord>,
    /// For each worker, in order of time.
    pub lanes: Vec<Vec<Span>>,
}

impl Recording {
    /// Without all steps but the first `n`: enough to look at.
    pub fn first_steps(&self, n: usize) -> Self {
        let keep = |span: &&Span| (span.step as usize) < n;
        Self {
            steps: self.steps.iter().take(n).cloned().collect(),
            lanes: self.lanes.iter().map(|lane| lane.iter().filter(keep).copied().collect()).collect(),
        }
    }

    /// Adds what was recorded later, by the same or another recorder, behind a pause of a millisecond.
    pub fn append(&mut self, later: &Self) {
        let end = self.steps.last().map_or(0, |step| step.end_ns + 1_000_000);
        let begin = later.steps.first().map_or(0, |step| step.begin_ns);
        let at = |ns: u64| ns.saturating_sub(begin) + end;
        let first = self.steps.len() as u32;
        self.lanes.resize(self.lanes.len().max(later.lanes.len()), Vec::new());
        for (lane, spans) in self.lanes.iter_mut().zip(&later.lanes) {
            lane.extend(spans.iter().map(|span| Span {
                step: span.step + first,
                begin_ns: at(span.begin_ns),
                end_ns: at(span.end_ns),
                ..*span
            }));
        }
        self.steps.extend(later.steps.iter().map(|step| StepRecord {
            begin_ns: at(step.begin_ns),
            end_ns: at(step.end_ns),
            ..step.clone()
        }));
    }
}

/// Records steps while they run: shared by the workers of a device.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    steps: Mutex<Vec<StepRecord>>,
    current: AtomicU32,
    lanes: Vec<Lane>,
}

/// The spans of a worker, on cache lines of their own. Only that worker writes, so that the lock is never waited for.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(Mutex<Vec<Span>>);

impl Recorder {
    /// For `workers` workers; time begins now.
    pub fn new(workers: usize) -> Self {
        Self {
            start: Instant::now(),
            steps: Mutex::default(),
            current: AtomicU32::new(0),
            lanes: (0..workers).map(|_| Lane::default()).collect(),
        }
    }

    /// Nanoseconds since the recorder was made.
    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// A device begins a step.
    pub fn begin_step(&self, step: &Step<'_>) {
        let launches =
            step.launches.iter().map(|launch| LaunchRecord { index: launch.index, kernel: launch.kernel }).collect();
        let mut steps = lock(&self.steps);
        self.current.store(steps.len() as u32, Ordering::Relaxed);
        let shape = StepShape::of(step.axes);
        let begin_ns = self.now_ns();
        steps.push(StepRecord { launches, shape, begin_ns, end_ns: begin_ns });
    }

    /// The step that began last is done.
    pub fn end_step(&self) {
        let end_ns = self.now_ns();
        if let Some(step) = lock(&self.steps).last_mut() {
            step.end_ns = end_ns;
        }
    }

    /// `worker` did `tiles` tiles of launch `launch` of the current step, beginning at `begin_ns` and ending now.
    pub fn part(&self, worker: usize, launch: usize, begin_ns: u64, tiles: u32) {
        let end_ns = self.now_ns();
        let (step, launch) = (self.current.load(Ordering::Relaxed), launch as u32);
        let Some(lane) = self.lanes.get(worker) else { return };
        let mut spans = lock(&lane.0);
        let busy_ns = end_ns.saturating_sub(begin_ns);
        match spans.last_mut().filter(|last| (last.step, last.launch) == (step, launch)) {
            Some(last) => {
                last.end_ns = end_ns;
                last.busy_ns += busy_ns;
                last.tiles += tiles;
            }
            None => spans.push(Span { step, launch, begin_ns, end_ns, busy_ns, tiles }),
        }
    }

    /// A device did all `tiles` tiles of launch `launch` of the current step between two times, as it measured them itself.
    pub fn span(&self, worker: usize, launch: usize, (begin_ns, end_ns): (u64, u64), tiles: u32) {
        let (step, launch) = (self.current.load(Ordering::Relaxed), launch as u32);
        let Some(lane) = self.lanes.get(worker) else { return };
        let busy_ns = end_ns.saturating_sub(begin_ns);
        lock(&lane.0).push(Span { step, launch, begin_ns, end_ns, busy_ns, tiles });
    }

    /// What was recorded so far; call it between steps.
    pub fn take(&self) -> Recording {
        let steps = std::mem::take(&mut *lock(&self.steps));
        Recording { steps, lanes: self.lanes.iter().map(|lane| std::mem::take(&mut *lock(&lane.0))).collect() }
    }
}

/// Poison says that a worker panicked; what was recorded before is as good as ever.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cost::AxisShape;
    use crate::device::{AxisStep, Launch};

    /// Two steps of the sample manifest's only launch on two workers, at given times.
    pub(crate) fn recording() -> Recording {
        let step = |begin_ns, end_ns| StepRecord {
            launches: vec![LaunchRecord { index: 0, kernel: 0 }],
            shape: StepShape { axes: vec![AxisShape { sequences: vec![(4, 2)], selected: 1 }] },
            begin_ns,
            end_ns,
        };
        let span = |step, begin_ns, end_ns, busy_ns| Span { step, launch: 0, begin_ns, end_ns, busy_ns, tiles: 1 };
        Recording {
            steps: vec![step(1000, 5000), step(6000, 9000)],
            lanes: vec![vec![span(0, 1500, 4500, 2500), span(1, 6100, 8100, 2000)], vec![span(0, 2000, 4000, 2000)]],
        }
    }

    #[test]
    fn parts_of_a_launch_become_one_span() {
        let recorder = Recorder::new(2);
        let launches = [Launch { index: 7, kernel: 3, tiles: 9, buffers: 0..0, stream: None }];
        let axes =
            [AxisStep { offsets: vec![0, 1], positions: vec![5], sequences: vec![0], rows: vec![0], before: vec![5] }];
        let step = Step {
            workspace: 0,
            launches: &launches,
            buffers: &[],
            sizes: &[],
            axes: &axes,
            caches: &[],
            n_sequences: 1,
        };
        for _ in 0..2 {
            recorder.begin_step(&step);
            for tiles in [4, 5] {
                recorder.part(1, 0, recorder.now_ns(), tiles);
            }
            recorder.part(9, 0, 0, 1);
            recorder.end_step();
        }
        let recording = recorder.take();
        assert_eq!(recording.steps.len(), 2);
        assert_eq!(recording.steps[0].launches, [LaunchRecord { index: 7, kernel: 3 }]);
        assert_eq!(recording.steps[0].shape.axes[0].sequences, [(5, 1)]);
        let spans: Vec<_> = recording.lanes[1].iter().map(|span| (span.step, span.launch, span.tiles)).collect();
        assert_eq!(spans, [(0, 0, 9), (1, 0, 9)]);
        assert!(recording.lanes[1].iter().all(|s| s.begin_ns <= s.end_ns && s.busy_ns <= s.end_ns - s.begin_ns));
        assert!(recording.lanes[0].is_empty());
        assert_eq!(recorder.take().steps, []);
    }

    #[test]
    fn recordings_are_cut_and_joined() {
        let mut whole = recording();
        let first = whole.first_steps(1);
        assert_eq!((first.steps.len(), first.lanes[0].len(), first.lanes[1].len()), (1, 1, 1));
        whole.append(&first);
        assert_eq!((whole.steps.len(), whole.lanes[0].len()), (3, 3));
        assert_eq!((whole.steps[2].begin_ns, whole.steps[2].end_ns), (1_009_000, 1_013_000));
        assert_eq!((whole.lanes[1][1].step, whole.lanes[1][1].begin_ns), (2, 1_010_000));
    }
}
