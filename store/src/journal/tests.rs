use super::*;
use crate::{Access, IdentityPolicy, ObjectId, ObjectName};

fn sample() -> Batch {
    let time = Time { seconds: -5, nanos: 999_999_999 };
    let action = |verb, mtime, names| Action {
        verb,
        object: ObjectName { id: ObjectId([7; 32]), twin: 2, overflow: 1 },
        ino: u64::MAX,
        ctime: i64::MIN,
        size: 3,
        mtime,
        names,
    };
    let name = |dir, name: &[u8]| NameRef { dir, name: name.to_vec() };
    Batch {
        guests: vec!["web1".into(), "a/b".into()],
        dirs: vec![
            DirRef { guest: 0, path: b"usr/bin".to_vec(), mtime: time },
            DirRef { guest: 1, path: vec![], mtime: Time::default() },
        ],
        actions: vec![
            action(Verb::Admit, None, vec![name(0, b"bash")]),
            action(Verb::Link, Some(time), vec![name(1, b"\xff\n"), name(0, b"sh")]),
            action(Verb::Detach, None, vec![]),
            action(Verb::Repair, None, vec![name(0, b"bash")]),
        ],
    }
}

fn with_store(test: impl FnOnce(&Store)) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().canonicalize().unwrap().join(".store");
    Store::create(&kernel::Real, &path, IdentityPolicy::Full).unwrap();
    test(&Store::open(&kernel::Real, &path, Access::Write, None).unwrap());
}

/// Writes rows that no run can have written, and sees the journal refused.
fn is_illegal(rows: &str) {
    with_store(|store| {
        drop(Journal::open(store).unwrap());
        Connection::open(store.path().join("journal.db")).unwrap().execute_batch(rows).unwrap();
        assert!(matches!(Journal::open(store).map(drop), Err(Error::IllegalHistory { .. })), "{rows}");
        assert!(Journal::open_read_only(store).is_err(), "{rows}");
    });
}

#[test]
fn batches_round_trip() {
    let batch = sample();
    assert_eq!(Batch::decode(&batch.encode()), Some(batch));
}

#[test]
fn a_verb_of_earlier_builds_is_read_as_what_it_was_a_case_of() {
    let action = Action { verb: Verb::Detach, ..sample().actions.remove(0) };
    let batch = Batch { actions: vec![action], ..sample() };
    let mut bytes = zstd::bulk::decompress(&batch.encode(), 4096).unwrap();
    let verb = bytes.windows(5).position(|five| five == [3, 7, 7, 7, 7]).unwrap();
    bytes[verb] = 1;
    assert_eq!(Batch::decode(&zstd::bulk::compress(&bytes, 1).unwrap()), Some(batch));
}

#[test]
fn damaged_batches_are_refused_and_never_panic() {
    let good = zstd::bulk::decompress(&sample().encode(), 4096).unwrap();
    for cut in 0..good.len() {
        assert_eq!(Batch::decode(&zstd::bulk::compress(&good[..cut], 1).unwrap()), None, "cut at {cut}");
    }
    for (at, bit) in (0..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        Batch::decode(&zstd::bulk::compress(&bad, 1).unwrap());
    }
}

#[test]
fn a_run_is_found_again_and_ends() {
    with_store(|store| {
        let done = Settled::Done { overflow: 1 };
        let settled = [done, Settled::NotDone, Settled::Admitted { overflow: 3 }, done];
        let mut journal = Journal::open(store).unwrap();
        let run = journal.begin(RunKind::Unify, "vunify a b", Seal::Bpf).unwrap();
        journal.intend(run, 0, &sample()).unwrap();
        drop(journal);
        journal = Journal::open(store).unwrap();
        assert_eq!(journal.open_run().unwrap().map(|run| run.id), Some(run));
        assert_eq!(journal.batch(run, 0).unwrap(), Some((sample(), None)));
        journal.settle(run, 0, &settled).unwrap();
        journal.end(run, RunEnd::Partial, "{}", &[]).unwrap();
        assert_eq!(journal.batch(run, 0).unwrap(), Some((sample(), Some(settled.to_vec()))));
        assert_eq!(journal.open_run().unwrap(), None);
        let undo = journal.begin(RunKind::Undo, "vunify --undo", Seal::None).unwrap();
        journal.end(undo, RunEnd::Complete, "{}", &[run]).unwrap();
        let runs = journal.runs().unwrap();
        assert_eq!((runs[0].seal, runs[0].undone_by), (Seal::Bpf, Some(undo)));
        drop(journal);
        assert_eq!(Journal::open_read_only(store).unwrap().unwrap().runs().unwrap(), runs);
    });
}

#[test]
fn illegal_histories_cannot_be_loaded() {
    let run = |id: u32, end: &str| {
        format!("INSERT INTO run VALUES ({id}, 'unify', '', 'none', 1, {end}, NULL, NULL);")
    };
    let done = "2, 'complete'";
    let open = "NULL, NULL";
    let batch = |run: u32, seq: u32, settled: &str| {
        format!("INSERT INTO batch VALUES ({run}, {seq}, x'', {settled});")
    };
    is_illegal(&(run(1, open) + &run(2, done)));
    is_illegal(&(run(1, open) + &run(2, open)));
    is_illegal(&run(1, "2, 'whatever'"));
    is_illegal(&run(1, "NULL, 'complete'"));
    is_illegal(&(run(1, done) + &batch(1, 0, "NULL")));
    is_illegal(&(run(1, done) + &batch(1, 1, "x''")));
    is_illegal(&(run(1, open) + &batch(1, 0, "NULL") + &batch(1, 1, "x''")));
    is_illegal(&(String::from("PRAGMA foreign_keys = OFF;") + &batch(9, 0, "x''")));
    is_illegal(&(run(1, done) + "UPDATE run SET undone = 1;"));
}

#[test]
fn a_later_journal_is_refused() {
    with_store(|store| {
        drop(Journal::open(store).unwrap());
        let db = Connection::open(store.path().join("journal.db")).unwrap();
        db.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
        drop(db);
        assert!(matches!(Journal::open(store).map(drop), Err(Error::Newer { .. })));
    });
}
