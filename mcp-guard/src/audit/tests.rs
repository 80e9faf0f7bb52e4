use std::{
    fs, io::Read as _, os::fd::AsRawFd as _, path::PathBuf, process::Command, time::Instant,
};

use super::{queue::MAX_WAITING, *};

const DEADLINE: Duration = Duration::from_secs(120);

struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A log that takes nothing until somebody reads it.
    fn fifo(&self) -> PathBuf {
        let path = self.path("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        path
    }
}

fn stop(reason: &str) -> Record {
    Record::AgentStop { reason: reason.to_owned() }
}

fn lines(text: &str) -> Vec<Line> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn wait(what: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !what() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A log with a writer of its own.
fn audit_on(writer: Writer) -> Audit {
    let queue = Arc::new(Queue::default());
    let lines = queue.clone();
    thread::spawn(move || writer.run(&lines));
    Audit { run: "run".to_owned(), seq: 0, queue, alone: None, reported: 0 }
}

fn is_written(audit: &Audit) -> bool {
    audit.queue.waiting() == 0
}

#[test]
fn lines_are_numbered_and_appended() {
    let scene = Scene::new();
    let path = scene.path("deep/audit.jsonl");
    for _ in 0..2 {
        let mut audit = Audit::open(&path).expect("opens");
        audit.write(stop("a\nb"));
        audit.write(stop("c"));
    }
    let lines = lines(&fs::read_to_string(&path).expect("readable"));
    assert_eq!(lines.iter().map(|line| line.seq).collect::<Vec<_>>(), [1, 2, 1, 2]);
}

#[test]
fn a_log_that_is_renamed_continues_in_a_new_file() {
    let scene = Scene::new();
    let (path, old) = (scene.path("audit.jsonl"), scene.path("audit.jsonl.1"));
    let mut audit = Audit::open(&path).expect("opens");
    audit.write(stop("before"));
    wait(|| is_written(&audit));
    fs::rename(&path, &old).expect("renamed");
    audit.write(stop("after"));
    audit.write(stop("later"));
    wait(|| is_written(&audit));
    fs::remove_file(&path).expect("removed");
    audit.write(stop("last"));
    drop(audit);
    let lines = |path| lines(&fs::read_to_string(path).expect("readable")).len();
    assert_eq!((lines(&old), lines(&path)), (1, 1));
}

#[test]
fn a_link_is_not_followed_and_a_folder_that_is_renamed_keeps_its_log() {
    let scene = Scene::new();
    let (folder, moved) = (scene.path("logs"), scene.path("moved"));
    let path = folder.join("audit.jsonl");
    let victim = scene.path("victim");
    fs::write(&victim, "").expect("written");
    fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::symlink(&victim, &path).expect("a link");
    let error = Audit::open(&path).err().expect("refused").to_string();
    assert!(error.contains("symbolic link"), "{error}");
    fs::remove_file(&path).expect("removed");

    let mut audit = Audit::open(&path).expect("opens");
    audit.write(stop("first"));
    wait(|| is_written(&audit));
    // As a user may who can write to the folder above.
    fs::rename(&folder, &moved).expect("renamed");
    fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::symlink(&victim, &path).expect("a link");
    audit.write(stop("second"));
    wait(|| is_written(&audit));
    // And as one who can write to the folder itself.
    fs::remove_file(moved.join("audit.jsonl")).expect("removed");
    std::os::unix::fs::symlink(&victim, moved.join("audit.jsonl")).expect("a link");
    audit.write(stop("third"));
    wait(|| is_written(&audit));
    drop(audit);
    assert_eq!(fs::read_to_string(&victim).expect("readable"), "");
}

/// As a frozen file system, a dead FUSE mount or a hung disk: the writer stands in a system call.
#[test]
fn a_log_that_hangs_holds_nobody_up_and_comes_later_with_its_lateness() {
    let scene = Scene::new();
    let path = scene.fifo();
    // Open for reading, so that it can be opened for writing; nobody reads.
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&path).expect("a fifo");
    let mut audit = Audit::open(&path).expect("opens");
    let began = Instant::now();
    // More than a pipe holds, so that the writer hangs in it.
    audit.write(stop(&"x".repeat(200_000)));
    for _ in 0..MAX_WAITING + 10 {
        audit.write(stop("more"));
    }
    audit.report_losses();
    assert!(began.elapsed() < DEADLINE / 2, "the loop waited");
    assert!(audit.lost() > 0, "beyond the bound the oldest are given up");
    let lost = audit.lost();
    thread::spawn(move || {
        let mut text = vec![0; 1 << 20];
        while reader.read(&mut text).is_ok_and(|length| length > 0) {}
    });
    wait(|| is_written(&audit));
    audit.report_losses();
    assert_eq!(audit.reported, lost);
}

#[test]
fn a_disk_that_is_full_loses_nothing_within_the_bound_and_reports_what_it_lost_beyond() {
    let scene = Scene::new();
    let path = scene.path("audit.jsonl");
    // Every write to /dev/full fails with ENOSPC. A folder at the path keeps the log there.
    fs::create_dir(&path).expect("a folder");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
    let mut audit = audit_on(Writer::on(path.clone(), full).expect("a writer"));
    audit.write(stop("first"));
    wait(|| audit.queue.is_failing());
    for _ in 0..MAX_WAITING + 3 {
        audit.write(stop("full"));
    }
    assert_eq!(audit.lost(), 3);
    fs::remove_dir(&path).expect("room again");
    wait(|| is_written(&audit));
    audit.report_losses();
    drop(audit);
    let lines = lines(&fs::read_to_string(&path).expect("readable"));
    let numbers: Vec<u64> = lines.iter().map(|line| line.seq).collect();
    assert_eq!(&numbers[..2], [1, 5], "in order, the oldest given up");
    assert!(lines[0].late_ms.is_some(), "it says how late it is");
    let Some(Record::Loss { cause, count: 3 }) = lines.last().map(|line| &line.record) else {
        panic!("the loss is in the log")
    };
    assert_eq!(cause, LINES_LOST);
}

#[test]
fn a_program_that_ends_waits_for_a_log_that_answers_and_for_no_other() {
    let scene = Scene::new();
    let path = scene.fifo();
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&path).expect("a fifo");
    let mut audit = Audit::open(&path).expect("opens");
    for _ in 0..3 {
        audit.write(stop(&"x".repeat(100_000)));
    }
    let began = Instant::now();
    drop(audit);
    let took = began.elapsed();
    assert!(took >= LAST_LINES && took < DEADLINE, "{took:?}");
    let mut full = Audit::open(std::path::Path::new("/dev/full")).expect("opens");
    full.write(stop("full"));
    wait(|| full.queue.is_failing());
    let began = Instant::now();
    drop(full);
    assert!(began.elapsed() < LAST_LINES, "it refuses, and is not waited for");
}

/// A disk that fills up takes a part of a line; the rest follows it.
#[test]
fn a_partly_written_line_is_completed_by_the_next_attempt() {
    let (mut read, write) = io::pipe().expect("a pipe");
    // A full pipe then refuses a write, as a full disk does.
    rustix::fs::fcntl_setfl(&write, rustix::fs::OFlags::NONBLOCK).expect("set");
    let path = PathBuf::from(format!("/proc/self/fd/{}", write.as_raw_fd()));
    let queue = Arc::new(Queue::default());
    let writer = Writer::on(path, write).expect("a writer");
    let lines_of = queue.clone();
    let writer = thread::spawn(move || writer.run(&lines_of));
    let mut audit = Audit { run: "run".to_owned(), seq: 0, queue, alone: None, reported: 0 };
    audit.write(stop(&"x".repeat(200_000)));
    audit.write(stop("after"));
    wait(|| audit.queue.is_failing());
    let reader = thread::spawn(move || {
        let mut text = String::new();
        read.read_to_string(&mut text).map(|_| text)
    });
    wait(|| is_written(&audit));
    drop(audit);
    writer.join().expect("joins");
    let text = reader.join().expect("joins").expect("readable");
    assert_eq!(lines(&text).iter().map(|line| line.seq).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn without_a_thread_the_lines_are_written_all_the_same() {
    let scene = Scene::new();
    let path = scene.path("audit.jsonl");
    let mut audit = Audit::open(&path).expect("opens");
    audit.alone = Some(Writer::open(&path).expect("opens"));
    audit.write(stop("a"));
    assert_eq!(lines(&fs::read_to_string(&path).expect("readable")).len(), 1, "at once");
    audit.alone = Some(Writer::open(std::path::Path::new("/dev/full")).expect("opens"));
    audit.write(stop("b"));
    assert_eq!(audit.lost(), 1);
}
