//! Files as they should be, and every way in which they are not.

use super::testing::Writer;
use super::*;
use crate::weights::Checkpoint;
use serde_json::json;

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn values_of_every_type() {
    let words = ["a", "bc"];
    let nested = [
        4u32.to_le_bytes().to_vec(),
        2u64.to_le_bytes().to_vec(),
        7u32.to_le_bytes().to_vec(),
        8u32.to_le_bytes().to_vec(),
    ];
    let file = Writer::new()
        .raw("u8", 0, &[200])
        .raw("i8", 1, &[200])
        .raw("u16", 2, &[1, 2])
        .raw("i16", 3, &[255, 255])
        .u32("u32", u32::MAX)
        .raw("i32", 5, &(-5i32).to_le_bytes())
        .f32("f32", 1e-5)
        .bool("bool", true)
        .text("text", "é")
        .raw("u64", 10, &u64::MAX.to_le_bytes())
        .raw("i64", 11, &i64::MIN.to_le_bytes())
        .raw("f64", 12, &0.1f64.to_le_bytes())
        .texts("words", &words)
        .list("numbers", 5, &[(-1i32).to_le_bytes().to_vec(), 2i32.to_le_bytes().to_vec()])
        .list("nested", 9, &[nested.concat()])
        .f32("infinite", f32::INFINITY)
        .bytes();
    let header = Header::read(&file).unwrap();
    for (key, expected) in [
        ("u8", json!(200)),
        ("i8", json!(-56)),
        ("u16", json!(513)),
        ("i16", json!(-1)),
        ("u32", json!(u32::MAX)),
        ("i32", json!(-5)),
        ("f32", json!(1e-5)),
        ("bool", json!(true)),
        ("text", json!("é")),
        ("u64", json!(u64::MAX)),
        ("i64", json!(i64::MIN)),
        ("f64", json!(0.1)),
        ("words", json!(words)),
        ("numbers", json!([-1, 2])),
        ("nested", json!([[7, 8]])),
        ("infinite", json!(null)),
    ] {
        assert_eq!(header.value(key).unwrap().to_json(&file, 8), Some(expected), "{key}");
    }
    let list = header.value("words").unwrap().as_list().unwrap();
    assert_eq!((list.texts(&file), list.numbers(&file)), (Some(words.to_vec()), None));
    let list = header.value("numbers").unwrap();
    assert_eq!(list.as_list().unwrap().numbers(&file), Some(vec![-1.0, 2.0]));
    assert_eq!((list.shown(&file), list.to_json(&file, 1)), ("[-1, 2]".to_owned(), None));
}

#[test]
fn tensors_and_alignment() {
    let data = f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for (version, alignment) in [(2, 32), (3, 8), (3, 64)] {
        let file = Writer::new().version(version).alignment(alignment);
        let file = file
            .tensor("a", &[2, 3], 0, &data)
            .tensor("b", &[2], 0, &data[..8])
            .tensor("q", &[1, 32], 8, &[0; 34])
            .bytes();
        let header = Header::read(&file).unwrap();
        let (a, q) = (&header.tensors["a"], &header.tensors["q"]);
        assert_eq!(
            (a.encoding, &a.shape[..], &file[a.bytes.clone()]),
            (Encoding::Plain(Dtype::F32), &[2, 3][..], &data[..])
        );
        assert_eq!((q.encoding, q.bytes.len()), (Encoding::Blocks(BlockFormat::Q8_0), 34));
        assert!(header.tensors.values().all(|tensor| tensor.bytes.start.is_multiple_of(alignment as usize)));
    }
}

#[test]
fn every_mistake_says_where_and_what() {
    let plain = || Writer::new().u32("a", 1);
    let mut short = plain().tensor("t", &[4], 0, &f32s(&[0.0; 4])).bytes();
    short.truncate(short.len() - 1);
    let mut big_endian = plain().bytes();
    big_endian[4..8].copy_from_slice(&3u32.to_be_bytes());
    let mut many = plain().bytes();
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut entries = plain().bytes();
    entries[16..24].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let deep: Vec<u8> = (0..8).flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()).collect();
    let huge = [&4u32.to_le_bytes()[..], &(1u64 << 60).to_le_bytes()].concat();
    for (file, problem) in [
        (b"GGU".to_vec(), "ends at byte 3 inside the first four bytes"),
        (b"GGML....".to_vec(), "is not a GGUF file"),
        (Writer::new().version(1).bytes(), "is of version 1, 2 or 3 was expected"),
        (big_endian, "is big-endian"),
        (many, "byte 8: the number of tensors is 18446744073709551615, more than"),
        (entries, "byte 16: the number of metadata entries is 1099511627776, more than"),
        (
            Writer::new().u32("a_longer_key_than_this", 1).bytes()[..40].to_vec(),
            "ends at byte 40 inside a metadata key, which begins at byte 32",
        ),
        (plain().u32("a", 2).bytes(), "the metadata key `a` is there twice"),
        (Writer::new().raw("x", 13, &[]).bytes(), "`x` is of type 13, 0 to 12 was expected"),
        (Writer::new().raw("x", 7, &[2]).bytes(), "`x` is [2], 0 or 1 was expected"),
        (Writer::new().raw("x", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).bytes(), "`x` is not UTF-8"),
        (Writer::new().raw("x", 9, &deep).bytes(), "lists inside lists, more than 4 deep"),
        (Writer::new().raw("x", 9, &huge).bytes(), "the length of a metadata list is 1152921504606846976, more than"),
        (
            Writer::new().text("general.alignment", "x").bytes(),
            "`general.alignment` is \"x\", a power of two was expected",
        ),
        (Writer::new().u32("general.alignment", 24).bytes(), "`general.alignment` is 24, a power of two"),
        (plain().tensor("t", &[1; 9], 0, &[0; 4]).bytes(), "`t` has 9 dimensions, at most 8"),
        (plain().tensor("t", &[4], 99, &[]).bytes(), "`t` is stored as type 99, which this version does not know"),
        (
            plain().tensor("t", &[2, 33], 8, &[0; 99]).bytes(),
            "`t` has rows of 33 elements, which are no whole blocks of 32",
        ),
        (plain().tensor("t", &[1 << 40, 1 << 40], 0, &[]).bytes(), "does not lie inside the file"),
        (short, "`t` of shape [4] does not lie inside the file"),
        (plain().tensor("t", &[1], 0, &[0; 4]).tensor("t", &[1], 0, &[0; 4]).bytes(), "the tensor `t` is there twice"),
        (
            plain().u32("general.alignment", 64).tensor("a", &[1], 0, &[0; 4]).tensor("b", &[40], 0, &[0; 160]).bytes(),
            "begins at offset 32, which is no multiple",
        ),
    ] {
        let refusal = Header::read(&file).expect_err(problem);
        assert!(
            refusal.problem.contains(problem) && !refusal.help.is_empty(),
            "{problem} is not in: {}",
            refusal.problem
        );
    }
}

#[test]
fn checkpoints_in_several_files() {
    let folder = tempfile::tempdir().unwrap();
    let part = |no: u16| Writer::new().raw("split.no", 2, &no.to_le_bytes()).raw("split.count", 2, &2u16.to_le_bytes());
    let write = |name: &str, file: Writer| {
        let path = folder.path().join(name);
        std::fs::write(&path, file.bytes()).unwrap();
        path
    };
    let first =
        write("m-00001-of-00002.gguf", part(0).text("general.architecture", "x").tensor("a", &[1], 0, &f32s(&[1.0])));
    let error = Checkpoint::open(&first).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00002.gguf: cannot open"), "{error}");
    write("m-00002-of-00002.gguf", part(1).tensor("b", &[1], 0, &f32s(&[2.0])));
    let Checkpoint::Stored(stored) = Checkpoint::open(&first).unwrap() else { panic!("stored") };
    assert_eq!((stored.numbers("a"), stored.numbers("b")), (Some(vec![1.0]), Some(vec![2.0])));
    let (header, file) = stored.header().unwrap();
    assert_eq!(header.value("general.architecture").unwrap().as_text(file), Some("x"));
    write("m-00002-of-00002.gguf", part(1).tensor("a", &[1], 0, &f32s(&[2.0])));
    assert!(Checkpoint::open(&first).unwrap_err().to_string().contains("has the tensor `a`, as another part has"));
    let renamed = write("renamed.gguf", part(0));
    let error = Checkpoint::open(&renamed).unwrap_err().to_string();
    assert!(
        error.contains("renamed.gguf: is part 1 of 2, and its name does not end in `-00001-of-00002.gguf`"),
        "{error}"
    );
}

#[test]
fn what_is_not_read_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, Writer::new().tensor("a", &[256], 16, &[0; 66]).bytes()).unwrap();
    let Checkpoint::Stored(stored) = Checkpoint::open(&path).unwrap() else { panic!("stored") };
    assert_eq!((stored.tensor("a").unwrap().encoding, stored.numbers("a")), (Encoding::Unread("IQ2_XXS"), None));
    assert!(is_gguf_file(&path) && !is_gguf_file(folder.path()));
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(
        error.to_string().contains("holds GGUF files") && error.help() == Some("give the .gguf file itself"),
        "{error}"
    );
}
