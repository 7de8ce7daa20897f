//! Doorbells of programs that just store to them.
//!
//! SQ and CQ share one register: who looks at the memory now and then would lose doorbells. So the
//! page cannot be written, and the SIGSEGV handler decodes the store, writes which queue was told
//! what into a pipe, and steps over the instruction. A thread reads the pipe and rings the model: it
//! may take locks, the handler may not. A pipe keeps the order, and a full one makes the program
//! wait.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use libc::{c_int, c_void};

use crate::next;
use crate::queues::Queue;

/// Queues that can be mapped at once: two devices with 1,024 each.
const PAGES: usize = 2048;

/// A mapped doorbell page. The handler reads it, without a lock.
struct Page {
    /// 0: not in use. Written last, and first to be cleared.
    start: AtomicUsize,
    len_bytes: AtomicUsize,
    /// Which mapping this is, as it goes through the pipe.
    number: AtomicU64,
    /// Where in it the doorbell is.
    doorbell: AtomicUsize,
}

static WATCHED: [Page; PAGES] = [const {
    Page {
        start: AtomicUsize::new(0),
        len_bytes: AtomicUsize::new(0),
        number: AtomicU64::new(0),
        doorbell: AtomicUsize::new(0),
    }
}; PAGES];

/// Pages in use lie below this index.
static WATCHED_END: AtomicUsize = AtomicUsize::new(0);
/// Where the handler writes; -1: there is none.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// Doorbells that went into the pipe.
static SENT: AtomicU64 = AtomicU64::new(0);
/// What the program wants done about faults that are not ours: one of `WISHES`. Null: no handler
/// of ours is in place.
static CHAINED: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
/// Places are used in turn, so that a handler that reads an old wish still finds it whole.
static WISHES: [Wish; 64] = [const { Wish(UnsafeCell::new(MaybeUninit::uninit())) }; 64];
static WISHES_NEXT: AtomicUsize = AtomicUsize::new(0);
static CHILD: AtomicBool = AtomicBool::new(false);

struct Wish(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: written by who drew its place, then only read (`chain`).
unsafe impl Sync for Wish {}

/// Who is behind the pipe.
struct Pump {
    state: Mutex<State>,
    /// A doorbell was rung.
    rung: Condvar,
}

#[derive(Default)]
struct State {
    queues: HashMap<u64, Weak<Queue>>,
    last: u64,
    rung: u64,
}

static PUMP: LazyLock<Pump> =
    LazyLock::new(|| Pump { state: Mutex::default(), rung: Condvar::new() });

fn state() -> MutexGuard<'static, State> {
    PUMP.state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the handler is in place: signals are ours to answer for.
pub(crate) fn is_set() -> bool {
    !CHAINED.load(Ordering::Acquire).is_null()
}

/// Stores to this page are doorbells of `queue` from now on.
pub(crate) fn watch(start: usize, len_bytes: usize, queue: &Arc<Queue>) -> io::Result<()> {
    let mut state = state();
    if PIPE.load(Ordering::Acquire) < 0 {
        set_up()?;
    }
    let free = WATCHED.iter().position(|page| page.start.load(Ordering::Acquire) == 0);
    let index = free.ok_or(io::ErrorKind::OutOfMemory)?;
    state.last += 1;
    let number = state.last;
    state.queues.insert(number, Arc::downgrade(queue));
    let page = &WATCHED[index];
    // The program stores to the page only after this call: whatever orders its own use of the
    // mapping orders these before it. Release, for the handler that scans by accident.
    page.len_bytes.store(len_bytes, Ordering::Release);
    page.number.store(number, Ordering::Release);
    page.doorbell.store(queue.file.doorbell_offset(), Ordering::Release);
    page.start.store(start, Ordering::Release);
    WATCHED_END.fetch_max(index + 1, Ordering::AcqRel);
    Ok(())
}

/// Pages that begin in this range are no doorbells any more: something else is mapped there.
pub(crate) fn unwatch(start: usize, len_bytes: usize) {
    for page in &WATCHED[..WATCHED_END.load(Ordering::Acquire)] {
        let at = page.start.load(Ordering::Acquire);
        if at != 0 && (start..start.saturating_add(len_bytes)).contains(&at) && !is_child() {
            settle();
            state().queues.remove(&page.number.load(Ordering::Acquire));
            page.start.store(0, Ordering::Release);
        }
    }
}

/// The queue was closed. What is stored to its page, as long as that is mapped, goes nowhere.
pub(crate) fn forget(queue: &Arc<Queue>) {
    state().queues.retain(|_, weak| !std::ptr::eq(weak.as_ptr(), Arc::as_ptr(queue)));
}

/// Waits until the model has heard every doorbell so far.
pub(crate) fn settle() {
    let sent = SENT.load(Ordering::Acquire);
    let mut state = state();
    while state.rung < sent {
        state = PUMP.rung.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Takes the program's wish for SIGSEGV, and tells the last one. Called from handlers too: it takes
/// no lock and allocates nothing.
pub(crate) fn chain(action: Option<libc::sigaction>, old: Option<&mut libc::sigaction>) {
    let current = match action {
        None => CHAINED.load(Ordering::Acquire),
        Some(action) => {
            let place = WISHES_NEXT.fetch_add(1, Ordering::AcqRel) % WISHES.len();
            let wish = WISHES[place].0.get().cast::<libc::sigaction>();
            // SAFETY: nobody else has the place: the last who had wrote it that many wishes ago.
            unsafe { wish.write(action) };
            CHAINED.swap(wish, Ordering::AcqRel)
        }
    };
    if let (Some(old), false) = (old, current.is_null()) {
        // SAFETY: what is chained was written before it was.
        *old = unsafe { *current };
    }
}

/// A child forked from a process with queues: it has none, nor the threads behind them.
pub(crate) fn is_child() -> bool {
    CHILD.load(Ordering::Acquire)
}

/// From now on children notice that they are.
pub(crate) fn notice_forks() {
    extern "C" fn in_child() {
        CHILD.store(true, Ordering::Release);
        // Stores to pages that the child does not have are the faults that they are.
        WATCHED_END.store(0, Ordering::Release);
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: a function that only stores to atomics, and is always there.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// Starts the thread and takes SIGSEGV over. Under the lock of `state`.
fn set_up() -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the end just opened; nobody else has it.
    let doorbells = unsafe { File::from_raw_fd(ends[0]) };
    std::thread::Builder::new().name("doorbells".into()).spawn(move || pump(doorbells))?;
    // SAFETY: all zeros is an action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART;
    let mut old = action;
    // SAFETY: room for an action. What is there is chained before ours is.
    if unsafe { next::sigaction(libc::SIGSEGV, std::ptr::null(), &raw mut old) } != 0 {
        return Err(io::Error::last_os_error());
    }
    chain(Some(old), None);
    // SAFETY: a whole action.
    if unsafe { next::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    PIPE.store(ends[1], Ordering::Release);
    Ok(())
}

fn pump(mut doorbells: File) {
    let mut message = [0; 16];
    // It ends with the process: the other end is never closed.
    while doorbells.read_exact(&mut message).is_ok() {
        let half =
            |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("eight bytes"));
        let queue = state().queues.get(&half(0)).and_then(Weak::upgrade);
        if let Some(queue) = queue {
            // SAFETY: what the program has written to the queue names its own memory, as it would have to for a
            // device.
            unsafe { queue.file.ring(half(8)) };
        }
        state().rung += 1;
        PUMP.rung.notify_all();
    }
}

/// The signal handler. A store to a doorbell faults in the program's own code, between two of its
/// instructions; still nothing is done here that takes a lock or allocates.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's own structures, valid during the handler (SA_SIGINFO).
    let (address, registers) = unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        ((*info).si_addr() as usize, &mut context.uc_mcontext.gregs)
    };
    let page = WATCHED[..WATCHED_END.load(Ordering::Acquire)].iter().find(|page| {
        let start = page.start.load(Ordering::Acquire);
        start != 0 && (start..start + page.len_bytes.load(Ordering::Acquire)).contains(&address)
    });
    if let Some(page) = page {
        let place = usize::try_from(registers[index(libc::REG_RIP)]).unwrap_or(0) as *const u8;
        // SAFETY: the processor has just fetched the instruction from there; bytes are read one
        // after the other, none beyond its end.
        let mut bytes = (0..).map(|at| unsafe { place.add(at).read() });
        if let Some(store) = Store::decode(&mut bytes) {
            let value = store.perform(registers);
            let start = page.start.load(Ordering::Acquire);
            if address - start == page.doorbell.load(Ordering::Acquire) {
                send(page.number.load(Ordering::Acquire), value);
            }
            return;
        }
        say(
            "warpcore-interposer: a store to a doorbell by an instruction other than mov, movnti and xchg of 64 bits\n",
        );
    }
    pass_on(signal, info, context);
}

/// A store of 64 bits.
#[derive(Debug, PartialEq, Eq)]
struct Store {
    value: Operand,
    /// Whether the old contents of memory, 0, go to the register.
    exchanges: bool,
    len_bytes: i64,
}

#[derive(Debug, PartialEq, Eq)]
enum Operand {
    Immediate(i32),
    /// By its number in the instruction.
    Register(usize),
}

impl Store {
    /// Of a store to memory (Intel SDM, volume 2: 2.1 instruction format, `MOV`, `MOVNTI`, `XCHG`).
    fn decode(bytes: &mut impl Iterator<Item = u8>) -> Option<Self> {
        let mut len_bytes = 0;
        let mut next = || {
            len_bytes += 1;
            bytes.next()
        };
        let rex = next()?;
        // REX.W: 64 bits.
        if rex & 0xf8 != 0x48 {
            return None;
        }
        let opcode = match next()? {
            0x0f => 0x0f00 | u16::from(next()?),
            opcode => opcode.into(),
        };
        let immediate = match opcode {
            0x87 | 0x89 | 0x0fc3 => false,
            0xc7 => true,
            _ => return None,
        };
        let modrm = next()?;
        let (form, register, base) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
        let base = if base == 4 { next()? & 7 } else { base };
        let displacement = match form {
            // Without a base: 32 bits of displacement.
            0 if base == 5 => 4,
            0 => 0,
            1 => 1,
            2 => 4,
            _ => return None,
        };
        for _ in 0..displacement {
            next()?;
        }
        let value = if immediate {
            if register != 0 {
                return None;
            }
            Operand::Immediate(i32::from_le_bytes([next()?, next()?, next()?, next()?]))
        } else {
            Operand::Register(usize::from(register | (rex & 4) << 1))
        };
        Some(Self { value, exchanges: opcode == 0x87, len_bytes })
    }

    /// Steps over it; answers what it stores.
    fn perform(&self, registers: &mut [libc::greg_t]) -> u64 {
        const ORDER: [c_int; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        let value = match self.value {
            Operand::Immediate(value) => value.into(),
            Operand::Register(register) => {
                let register = &mut registers[index(ORDER[register])];
                if self.exchanges { std::mem::replace(register, 0) } else { *register }
            }
        };
        registers[index(libc::REG_RIP)] += self.len_bytes;
        value.cast_unsigned()
    }
}

/// Where a register is saved.
fn index(register: c_int) -> usize {
    usize::try_from(register).expect("the C library counts from 0")
}

/// Hands a doorbell to the thread. A pipe takes 16 bytes as a whole, and waits when it is full.
fn send(number: u64, value: u64) {
    let mut message = [0; 16];
    message[..8].copy_from_slice(&number.to_ne_bytes());
    message[8..].copy_from_slice(&value.to_ne_bytes());
    // SAFETY: this thread's own; the code that faulted must find it as it was.
    let errno = unsafe { *libc::__errno_location() };
    // Counted first: who settles waits rather too long than too short.
    SENT.fetch_add(1, Ordering::AcqRel);
    // SAFETY: a descriptor that is never closed, and 16 bytes of ours.
    while unsafe { libc::write(PIPE.load(Ordering::Acquire), message.as_ptr().cast(), 16) } < 0
        // SAFETY: this thread's own.
        && unsafe { *libc::__errno_location() } == libc::EINTR
    {}
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

fn say(text: &str) {
    // SAFETY: bytes of ours; `write` is allowed in a handler.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

/// Does what the program wants done about a fault.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: chained before the handler was set.
    let action = unsafe { *CHAINED.load(Ordering::Acquire) };
    if action.sa_flags & libc::SA_RESETHAND != 0 {
        let mut default = action;
        (default.sa_sigaction, default.sa_flags) = (libc::SIG_DFL, 0);
        chain(Some(default), None);
    }
    match action.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The instruction is run again, and the kernel does its part: also when the program
            // ignores the signal, which the kernel does not allow for faults.
            // SAFETY: all zeros is the default action.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: a whole action.
            unsafe { next::sigaction(signal, &raw const default, std::ptr::null_mut()) };
            // SAFETY: the kernel's own structure.
            if unsafe { (*info).si_code } <= 0 {
                // Sent by somebody: there is no instruction to fault again.
                // SAFETY: sends a signal to ourselves.
                unsafe { libc::raise(signal) };
            }
        }
        handler if action.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the program said that its handler has this type.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: as above.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Option<Store> {
        Store::decode(&mut bytes.iter().copied())
    }

    #[test]
    fn stores_are_decoded_to_their_last_byte() {
        let register = |register, exchanges, len_bytes| {
            Some(Store { value: Operand::Register(register), exchanges, len_bytes })
        };
        for (bytes, store) in [
            // mov %rax,(%rdx)
            (&[0x48, 0x89, 0x02][..], register(0, false, 3)),
            // mov %r9,0x1000(%rdi)
            (&[0x4c, 0x89, 0x8f, 0, 0x10, 0, 0], register(9, false, 7)),
            // mov %rcx,0x40(%rax,%rbx,8)
            (&[0x48, 0x89, 0x4c, 0xd8, 0x40], register(1, false, 5)),
            // mov %rdx,0x12345678(,%rbx,8)
            (&[0x48, 0x89, 0x14, 0xdd, 0x78, 0x56, 0x34, 0x12], register(2, false, 8)),
            // mov %rsi,0x100(%rip)
            (&[0x48, 0x89, 0x35, 0, 1, 0, 0], register(6, false, 7)),
            // mov %rax,(%r12)
            (&[0x49, 0x89, 0x04, 0x24], register(0, false, 4)),
            // movnti %r15,(%r8)
            (&[0x4d, 0x0f, 0xc3, 0x38], register(15, false, 4)),
            // xchg %rax,(%rdx)
            (&[0x48, 0x87, 0x02], register(0, true, 3)),
            // movq $-2,0x8(%rax)
            (
                &[0x48, 0xc7, 0x40, 8, 0xfe, 0xff, 0xff, 0xff],
                Some(Store { value: Operand::Immediate(-2), exchanges: false, len_bytes: 8 }),
            ),
            // mov %eax,(%rdx): 32 bits; mov %rax,%rdx: no memory; add %rax,(%rdx).
            (&[0x89, 0x02], None),
            (&[0x48, 0x89, 0xc2], None),
            (&[0x48, 0x01, 0x02], None),
        ] {
            assert_eq!(decode(bytes), store, "{bytes:x?}");
        }
    }

    #[test]
    fn a_store_is_stepped_over() {
        let mut registers = [0; 23];
        registers[index(libc::REG_R9)] = -3;
        registers[index(libc::REG_RIP)] = 100;
        let store = Store { value: Operand::Register(9), exchanges: true, len_bytes: 4 };
        assert_eq!(store.perform(&mut registers), (-3_i64).cast_unsigned());
        assert_eq!((registers[index(libc::REG_R9)], registers[index(libc::REG_RIP)]), (0, 104));
    }
}
