//! The fuzz targets (`src/testing/fuzz`) on the inputs in `fuzz/corpus` and on
//! variations of them, always the same ones. `make fuzz` looks for new ones.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use demo_multiplexer::testing::fuzz::{TARGETS, Target};

/// How many variations of each input are tried: as many as take a few seconds.
const VARIATIONS: usize = 60;

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name)
}

/// The inputs of a target, by file name.
fn inputs(name: &str) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = std::fs::read_dir(corpus(name))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    found.sort();
    found
}

fn try_one(target: Target, input: &[u8], what: &str) {
    if catch_unwind(|| target(input)).is_err() {
        panic!("{what} breaks a promise; the input:\n{}", input.escape_ascii());
    }
}

fn run(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let inputs = inputs(name);
    assert!(inputs.len() >= 3, "{name} has inputs to begin with");
    for (file, input) in &inputs {
        try_one(target, input, &format!("{name}/{file}"));
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..VARIATIONS {
        for (file, input) in &inputs {
            let (_, other) = &inputs[random.below(inputs.len())];
            let varied = vary(input, other, &mut random);
            try_one(target, &varied, &format!("a variation of {name}/{file}, round {round},"));
        }
    }
}

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }
}

/// A few bytes changed, removed, doubled or taken from another input.
fn vary(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut varied = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(varied.len() + 1);
        let length = random.below(16).min(varied.len() - at);
        match random.below(5) {
            0 if length > 0 => varied[at] ^= 1 << random.below(8),
            1 => drop(varied.drain(at..at + length)),
            2 => {
                let doubled = varied[at..at + length].to_vec();
                varied.splice(at..at, doubled);
            }
            3 => {
                let from = random.below(other.len() + 1);
                let to = (from + random.below(40)).min(other.len());
                varied.splice(at..at + length, other[from..to].iter().copied());
            }
            _ => varied.insert(at, [0, b'\n', b' ', b'.', b'/', b'0', 0xff, b'%'][random.below(8)]),
        }
    }
    varied
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($name)),*]);
        }
    };
}

targets!(api archive host images manifest page recipe record settings);

#[test]
fn a_broken_promise_is_told() {
    let broken = catch_unwind(|| try_one(|input| assert!(!input.contains(&b'x')), b"axb", "this"));
    let told = *broken.unwrap_err().downcast::<String>().unwrap();
    assert!(told.contains("this breaks a promise") && told.contains("axb"), "{told}");
}
