//! A C program that was written against the kernel's headers alone runs on the model.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use warpcore_need::{Need, need};

const NEEDS: [Need; 2] = [Need::Tool("cc", "gcc"), Need::Tool("openssl", "openssl")];

/// The library. Cargo builds no `cdylib` for tests, so that it is asked to, once.
fn interposer() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let profile = test.ancestors().nth(2).expect("in target/PROFILE/deps");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--quiet", "--package", "warpcore-interposer"]);
        cargo.arg("--target-dir").arg(profile.parent().expect("in target"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let built = cargo.output().expect("cargo runs us");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        profile.join("libwarpcore_interposer.so")
    });
    &LIBRARY
}

struct Program {
    folder: tempfile::TempDir,
}

impl Program {
    fn build() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/uacce.c");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(folder.path().join("uacce"));
        let built = cc.arg(source).output().expect("checked by need");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Self { folder }
    }

    fn run(&self, arguments: &[&str], environment: &[(&str, &str)], input: &[u8]) -> Output {
        let mut command = Command::new(self.folder.path().join("uacce"));
        command.args(arguments).env("LD_PRELOAD", interposer());
        command.env("TMPDIR", self.folder.path()).envs(environment.iter().copied());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("built above");
        // A program that gives up early does not read it all.
        let _ = child.stdin.take().expect("piped").write_all(input);
        child.wait_with_output().expect("waited for")
    }

    fn good(&self, arguments: &[&str], environment: &[(&str, &str)], input: &[u8]) -> Vec<u8> {
        let output = self.run(arguments, environment, input);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} {environment:?}: {output:?} {said}");
        assert_eq!(said, "");
        output.stdout
    }
}

#[test]
fn it_compresses_over_the_end_of_the_queue() {
    if !need(&NEEDS) {
        return;
    }
    let program = Program::build();
    let plain: Vec<u8> = (0..30_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    for (api, count) in [("v1", "30"), ("v2", "2500"), ("v3", "30")] {
        let stored = program.good(&["zip", count], &[("WARPCORE_MODEL_API", api)], &plain);
        assert!(stored.len() < plain.len() / 2);
        // The header is the program's to write.
        let stream = [&[0x78, 0x9c][..], &stored].concat();
        let mut back = Vec::new();
        flate2::read::ZlibDecoder::new(&stream[..]).read_to_end(&mut back).expect("reads");
        assert_eq!(back, plain, "{api}");
    }
    let left: Vec<_> = std::fs::read_dir(program.folder.path()).expect("listed").collect();
    assert_eq!(left.len(), 1, "the program itself; its temporary folder is gone: {left:?}");
}

#[test]
fn its_powers_are_openssls() {
    if !need(&NEEDS) {
        return;
    }
    let program = Program::build();
    let path = |name: &str| program.folder.path().join(name);
    let openssl = |arguments: &[&str], folder: &Path| {
        let output = Command::new("openssl").current_dir(folder).args(arguments).output();
        let output = output.expect("checked by need");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    for bits in [1024, 2048, 4096_usize] {
        let option = format!("rsa_keygen_bits:{bits}");
        let pem = openssl(
            &["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", &option],
            program.folder.path(),
        );
        std::fs::write(path("key"), pem).expect("written");
        let der = openssl(
            &["rsa", "-in", "key", "-traditional", "-outform", "DER"],
            program.folder.path(),
        );
        let key = pkcs1::RsaPrivateKeyRef::try_from(der.as_slice()).expect("DER");
        let half = bits / 16;
        let mut input = Vec::new();
        for number in [key.exponent2, key.exponent1, key.prime2, key.prime1, key.coefficient] {
            input.extend(vec![0; half - number.as_bytes().len()]);
            input.extend_from_slice(number.as_bytes());
        }
        let number: Vec<u8> = [&[0][..], &vec![0xc3; bits / 8 - 1]].concat();
        std::fs::write(path("number"), &number).expect("written");
        let raw =
            ["-decrypt", "-inkey", "key", "-in", "number", "-pkeyopt", "rsa_padding_mode:none"];
        let expected = openssl(&[&["pkeyutl"][..], &raw].concat(), program.folder.path());
        input.extend(number);
        assert_eq!(program.good(&["hpre", &bits.to_string()], &[], &input), expected, "{bits}");
    }
}

#[test]
fn what_the_kernel_refuses_is_refused() {
    if need(&NEEDS) {
        let program = Program::build();
        for api in ["v1", "v2", "v3"] {
            let few = [("WARPCORE_MODEL_API", api), ("WARPCORE_MODEL_INSTANCES", "9")];
            program.good(&["rules"], &few, &[]);
        }
    }
}

#[test]
fn faults_come_as_the_seed_says() {
    if !need(&NEEDS) {
        return;
    }
    let program = Program::build();
    let run = &|seed: u8| {
        let faults = [("WARPCORE_MODEL_FAULTS", &*format!("{seed}:1000"))];
        program.run(&["zip", "1"], &faults, b"something").status.code()
    };
    // At once: some wait for an answer that does not come.
    let codes: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..16_u8).map(|n| scope.spawn(move || run(n / 2))).collect();
        running.into_iter().map(|code| code.join().expect("runs")).collect()
    });
    assert!(codes.iter().all(|code| *code != Some(98)), "{codes:?}");
    assert!(codes.iter().filter(|code| **code != Some(0)).count() >= 8, "{codes:?}");
    assert!(codes.chunks(2).all(|pair| pair[0] == pair[1]), "{codes:?}");
}

#[test]
fn an_environment_that_cannot_be_says_so() {
    if !need(&NEEDS) {
        return;
    }
    let program = Program::build();
    for (name, value) in [
        ("WARPCORE_MODEL_API", "v9"),
        ("WARPCORE_MODEL_INSTANCES", "many"),
        ("WARPCORE_MODEL_FAULTS", "1"),
    ] {
        let output = program.run(&["rules"], &[(name, value)], &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("there are no devices") && said.contains(value), "{said}");
        assert_eq!(output.status.code(), Some(99), "the program finds no class");
    }
}
