//! Numbers that a generator draws, remembered so that a failing case can be made smaller.
//!
//! A generator that asks [`Choices`] and means the simplest thing by 0 is shrunk by lowering what it drew: [`shrink`] tries that, and
//! promises choices that still fail.

use std::time::{Duration, Instant};

use crate::fill::splitmix64;

/// Draws: first those given, then new ones of a seed; or zeros, where no seed is left.
#[derive(Clone, Debug)]
pub struct Choices {
    given: Vec<u64>,
    seed: Option<u64>,
    drawn: Vec<u64>,
}

impl Choices {
    /// Draws of a seed.
    pub fn of_seed(seed: u64) -> Self {
        Choices { given: Vec::new(), seed: Some(seed), drawn: Vec::new() }
    }

    /// The draws of a list, then zeros.
    pub fn of_list(given: Vec<u64>) -> Self {
        Choices { given, seed: None, drawn: Vec::new() }
    }

    /// What was drawn so far.
    pub fn drawn(&self) -> &[u64] {
        &self.drawn
    }

    /// A number in `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        let at = self.drawn.len();
        let number = match (self.given.get(at), self.seed) {
            (Some(number), _) => *number,
            (None, Some(seed)) => splitmix64(seed, at as u64),
            (None, None) => 0,
        };
        let number = number % n.max(1);
        self.drawn.push(number);
        number
    }

    /// Yes once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == n - 1
    }

    /// One of a list, the simplest first.
    pub fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }

    /// One of a list of numbers, the simplest first.
    pub fn number(&mut self, list: &[u64]) -> u64 {
        list[self.below(list.len() as u64) as usize]
    }
}

/// Lowers numbers of a list as long as `fails` says that it fails, for at most `time`.
pub fn shrink(mut list: Vec<u64>, time: Duration, mut fails: impl FnMut(&[u64]) -> bool) -> Vec<u64> {
    let end = Instant::now() + time;
    let mut try_one = |list: &mut Vec<u64>, candidate: Vec<u64>| {
        let smaller = candidate != *list && Instant::now() < end && fails(&candidate);
        if smaller {
            *list = candidate;
        }
        smaller
    };
    loop {
        let before = list.clone();
        // The tail as zeros, then single numbers.
        let mut keep = list.len() / 2;
        while keep < list.len() {
            let zeros = list.iter().enumerate().map(|(i, n)| if i < keep { *n } else { 0 }).collect();
            if try_one(&mut list, zeros) {
                break;
            }
            keep += (list.len() - keep).div_ceil(2);
        }
        for i in 0..list.len() {
            for smaller in [0, list[i] / 2, list[i].saturating_sub(1)] {
                let mut candidate = list.clone();
                candidate[i] = smaller;
                if smaller < list[i] && try_one(&mut list, candidate) {
                    break;
                }
            }
        }
        if list == before {
            return list;
        }
    }
}
