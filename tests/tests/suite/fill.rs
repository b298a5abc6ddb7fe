//! The weight generator against the bit patterns that its other implementation published.

use xfc_tests::fill::{fill, fnv1a64, splitmix64};

struct Vector {
    name: &'static str,
    seed: u64,
    offset: f64,
    scale: f64,
    hash: u64,
    raw: [u64; 4],
    bits: [u32; 4],
}

const VECTORS: [Vector; 3] = [
    Vector {
        name: "model.embed_tokens.weight",
        seed: 0,
        offset: 0.0,
        scale: 0.5,
        hash: 0xa88f_d795_d5c6_d156,
        raw: [0x5f0c_e479_8904_7d81, 0x51ec_b670_9450_0aee, 0x8366_a965_cb94_ae9c, 0x3f99_e587_468e_8e0a],
        bits: [0xbe03_cc70, 0xbe38_4d28, 0x3c59_aa40, 0xbe80_cc36],
    },
    Vector {
        name: "model.layers.0.self_attn.q_proj.weight",
        seed: 1,
        offset: 0.0,
        scale: 0.216_506_347_060_203_55,
        hash: 0x3a29_6639_dc11_febb,
        raw: [0xe3d4_643a_336d_e980, 0xa19b_2f4e_5884_f7f7, 0x3755_28eb_0973_133b, 0x067a_302d_8a2a_a93d],
        bits: [0x3e2c_e8f7, 0x3d68_d49a, 0xbdfb_ba24, 0xbe52_7bc6],
    },
    Vector {
        name: "model.norm.weight",
        seed: 7,
        offset: 1.0,
        scale: 0.100_000_001_490_116_12,
        hash: 0xd6d6_e5af_d116_04e4,
        raw: [0x8db6_51c1_fc09_7af8, 0x31d1_33ba_3e87_46e7, 0x2cc7_cb37_f3ae_4316, 0x4b04_ac86_5380_28b8],
        bits: [0x3f81_5f08, 0x3f70_5d0a, 0x3f6f_5b29, 0x3f75_6756],
    },
];

#[test]
fn values_have_the_published_bits() {
    for v in &VECTORS {
        assert_eq!(fnv1a64(v.name), v.hash, "{}", v.name);
        let raw: Vec<u64> = (0..4).map(|i| splitmix64(v.hash ^ v.seed, i)).collect();
        assert_eq!(raw, v.raw, "{}", v.name);
        let bits: Vec<u32> = fill(v.name, v.seed, 4, v.offset, v.scale).iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits, v.bits, "{}", v.name);
    }
}

#[test]
fn a_prefix_does_not_depend_on_the_length() {
    let v = &VECTORS[1];
    let long = fill(v.name, v.seed, 4096, v.offset, v.scale);
    assert_eq!(fill(v.name, v.seed, 100, v.offset, v.scale), long[..100]);
    assert!(long.iter().all(|x| f64::from(x.abs()) <= v.scale));
}
