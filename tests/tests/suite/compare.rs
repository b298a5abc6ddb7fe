//! The comparison accepts what it should, and names the first element that departs.

use xfc_tests::compare::{Precision, Tier, compare};

fn next(x: f32, steps: u32) -> f32 {
    f32::from_bits(x.to_bits() + steps)
}

#[test]
fn the_first_departing_element_is_named() {
    let want = [0.0f32; 12];
    let mut got = want;
    got[7] = 0.5;
    got[9] = -2.0;
    let error = compare("logits", &[3, 4], &got, &want, Tier::Close, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("`logits` departs first at [1, 3] (element 7)"), "{error}");
    assert!(error.contains("2 of 12 elements depart, the furthest by 2.000e0 at [2, 1]"), "{error}");
}

#[test]
fn exact_means_equal() {
    assert!(compare("x", &[2], &[1.0f32, -0.0], &[1.0f32, 0.0], Tier::Exact, Precision::F32).is_ok());
    assert!(compare("x", &[1], &[next(1.0, 1)], &[1.0f32], Tier::Exact, Precision::F32).is_err());
}

#[test]
fn ulps_are_those_of_the_precision() {
    for value in [1.0f32, 1.5, 3.0e-30, 7.5e20, f32::MIN_POSITIVE] {
        let check = |steps| compare("x", &[1], &[next(value, steps)], &[value], Tier::Ulp(2), Precision::F32);
        assert!(check(2).is_ok(), "{value}");
        assert!(check(4).is_err(), "{value}");
    }
    assert!(compare("x", &[1], &[1.0f32 + 1.0 / 128.0], &[1.0f32], Tier::Ulp(1), Precision::BF16).is_ok());
    assert!(compare("x", &[1], &[1.0f32 + 1.0 / 128.0], &[1.0f32], Tier::Ulp(1), Precision::F32).is_err());
}

#[test]
fn a_longer_sum_may_depart_further() {
    let check = |k| compare("x", &[1], &[1.0f32 + 3e-5], &[1.0f32], Tier::Accumulate(k), Precision::F32);
    assert!(check(4).is_err());
    assert!(check(4096).is_ok());
}

#[test]
fn what_rounding_moves_far_may_depart_further() {
    let check = |moved| compare("x", &[1], &[1.3f32], &[1.0f32], Tier::Rounded(moved), Precision::BF16);
    assert!(check(0.1).is_err());
    assert!(check(0.2).is_ok());
    assert!(compare("x", &[1], &[1.1f32], &[1.0f32], Tier::Rounded(0.0), Precision::BF16).is_ok());
}

#[test]
fn nan_and_infinity_depart_from_numbers() {
    let tiers =
        [Tier::Exact, Tier::Ulp(9), Tier::Close, Tier::Accumulate(9), Tier::Model, Tier::Rounded(9.0), Tier::Embedding];
    for tier in tiers {
        let check = |got: f32, want: f32| compare("x", &[1], &[got], &[want], tier, Precision::F32);
        assert!(check(f32::NAN, 1.0).is_err(), "{tier:?}");
        assert!(check(1.0, f32::NAN).is_err(), "{tier:?}");
        assert!(check(f32::INFINITY, 1.0).is_err(), "{tier:?}");
        assert!(check(1.0, f32::NEG_INFINITY).is_err(), "{tier:?}");
        assert!(check(f32::INFINITY, f32::NEG_INFINITY).is_err(), "{tier:?}");
        assert!(check(f32::NEG_INFINITY, f32::NEG_INFINITY).is_ok(), "{tier:?}");
    }
}

#[test]
fn lengths_must_match_the_shape() {
    assert!(compare("x", &[2, 2], &[0.0f32; 3], &[0.0f32; 4], Tier::Model, Precision::F32).is_err());
    assert!(compare("x", &[2, 2], &[0.0f32; 3], &[0.0f32; 3], Tier::Model, Precision::F32).is_err());
}
