//! From rules to the kernel's filter programs, while this crate is compiled.
//!
//! Runs in the compiler, so a list that does not fit is no program at all. Numbers are found by halving the range: the kernel
//! translates each program and tries all call numbers on it when a process puts it on, which takes the longer, the more
//! instructions it has and passes; a chain of comparisons is what `seccompiler` makes. The same package's programs are
//! what a test holds ours against.
//!
//! ```text
//! the architecture is another: kill         number < 10 ? number < 3 ? … : …     for each call with conditions
//! load the number                    ──►                 : number < 16 ? … : … ──► load, mask, compare … allow; kill
//! ```

use seccompiler::sock_filter;

use super::Rule;

/// linux/bpf_common.h.
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const GO: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_NOT_LESS: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// linux/seccomp.h.
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

/// Offsets in struct seccomp_data of linux/seccomp.h: the lower half of an argument comes first.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
const _: () = assert!(cfg!(target_endian = "little"), "the halves of an argument stand the other way round");

/// linux/audit.h: AUDIT_ARCH_…, the ELF machine and two flags for 64 bits and little endian.
const ARCHITECTURE: u32 = 0xC000_0000
    | if cfg!(target_arch = "x86_64") {
        62
    } else if cfg!(target_arch = "aarch64") {
        183
    } else if cfg!(target_arch = "riscv64") {
        243
    } else {
        panic!("no filters for this architecture")
    };

/// Instructions before the number is looked at.
const PREFACE: usize = 4;

/// More than any list needs; the kernel's limit is 4096 (BPF_MAXINSNS, linux/bpf_common.h).
const CAPACITY: usize = 1024;

/// A program under construction.
pub(super) struct Assembly {
    code: [sock_filter; CAPACITY],
    pub(super) length: usize,
}

/// What is done with the numbers from `first` to where the next one begins.
#[derive(Clone, Copy)]
struct Range {
    first: u32,
    verdict: Verdict,
    /// Where the instruction stands that goes to the conditions, if there are some.
    leaf: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Kill,
    Allow,
    Conditions,
}

impl Assembly {
    /// Assembles rules. Several of one number are alternatives.
    pub(super) const fn of(rules: &[Rule]) -> Self {
        let mut program = Assembly { code: [const { instruction(0, 0, 0, 0) }; CAPACITY], length: 0 };
        program.put(LOAD, 0, 0, ARCHITECTURE_AT);
        program.put(IF_EQUAL, 1, 0, ARCHITECTURE);
        program.put(RETURN, 0, 0, KILL);
        program.put(LOAD, 0, 0, NUMBER_AT);
        assert!(program.length == PREFACE);
        let (mut ranges, count) = ranges(rules);
        program.search(&mut ranges, 0, count);
        let mut position = 0;
        while position < count {
            let range = ranges[position];
            if matches!(range.verdict, Verdict::Conditions) {
                program.code[range.leaf].k = (program.length - range.leaf - 1) as u32;
                program.conditions(rules, range.first);
            }
            position += 1;
        }
        program
    }

    /// The instructions alone.
    pub(super) const fn cut<const LENGTH: usize>(&self) -> [sock_filter; LENGTH] {
        let mut program = [const { instruction(0, 0, 0, 0) }; LENGTH];
        let mut position = 0;
        while position < LENGTH {
            let sock_filter { code, jt, jf, k } = self.code[position];
            program[position] = instruction(code, jt, jf, k);
            position += 1;
        }
        program
    }

    const fn put(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.code[self.length] = instruction(code, jt, jf, k);
        self.length += 1;
    }

    /// Finds the range of the loaded number among `ranges[from..to]`.
    const fn search(&mut self, ranges: &mut [Range; CAPACITY], from: usize, to: usize) {
        if to - from == 1 {
            ranges[from].leaf = self.length;
            match ranges[from].verdict {
                Verdict::Kill => self.put(RETURN, 0, 0, KILL),
                Verdict::Allow => self.put(RETURN, 0, 0, ALLOW),
                Verdict::Conditions => self.put(GO, 0, 0, 0),
            }
            return;
        }
        let middle = from + (to - from) / 2;
        let question = self.length;
        self.put(IF_NOT_LESS, 0, 0, ranges[middle].first);
        self.search(ranges, from, middle);
        self.code[question].jt = short(self.length - question - 1);
        self.search(ranges, middle, to);
    }

    /// Allows the call if all conditions of one of its rules hold.
    const fn conditions(&mut self, rules: &[Rule], number: u32) {
        let mut next = 0;
        while next < rules.len() {
            let rule = &rules[next];
            next += 1;
            if rule.number as u32 != number {
                continue;
            }
            let mut end = self.length + 1;
            let mut position = 0;
            while position < rule.conditions.len() {
                end += if rule.conditions[position].mask == u32::MAX { 2 } else { 3 };
                position += 1;
            }
            position = 0;
            while position < rule.conditions.len() {
                let condition = rule.conditions[position];
                assert!(
                    condition.argument < 6 && condition.value & !condition.mask == 0,
                    "it can never hold"
                );
                self.put(LOAD, 0, 0, ARGUMENTS_AT + 8 * condition.argument as u32);
                if condition.mask != u32::MAX {
                    self.put(AND, 0, 0, condition.mask);
                }
                self.put(IF_EQUAL, 0, short(end - self.length - 1), condition.value);
                position += 1;
            }
            self.put(RETURN, 0, 0, ALLOW);
        }
        self.put(RETURN, 0, 0, KILL);
    }
}

/// The numbers in order, neighbours that are treated alike together.
const fn ranges(rules: &[Rule]) -> ([Range; CAPACITY], usize) {
    let mut ranges = [Range { first: 0, verdict: Verdict::Kill, leaf: 0 }; CAPACITY];
    let mut count = 1;
    let mut from = 0;
    while let Some((number, verdict)) = smallest(rules, from) {
        let last = ranges[count - 1];
        if last.first == number {
            // Nothing lies between it and the one before.
            count -= 1;
        }
        if count == 0
            || !(matches!(verdict, Verdict::Allow) && matches!(ranges[count - 1].verdict, Verdict::Allow))
        {
            ranges[count] = Range { first: number, verdict, leaf: 0 };
            count += 1;
        }
        from = number + 1;
        ranges[count] = Range { first: from, verdict: Verdict::Kill, leaf: 0 };
        count += 1;
    }
    (ranges, count)
}

/// The smallest number of at least `from` that a rule names.
const fn smallest(rules: &[Rule], from: u32) -> Option<(u32, Verdict)> {
    let mut found: Option<(u32, Verdict)> = None;
    let mut position = 0;
    while position < rules.len() {
        let rule = &rules[position];
        position += 1;
        // x32 numbers have this bit; none of ours is negative.
        assert!(0 <= rule.number && rule.number < 0x4000_0000);
        let number = rule.number as u32;
        let nearer = match found {
            None => true,
            Some((nearest, _)) => number < nearest,
        };
        if number >= from && nearer {
            let verdict = if rule.conditions.is_empty() { Verdict::Allow } else { Verdict::Conditions };
            found = Some((number, verdict));
        }
    }
    found
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

const fn short(distance: usize) -> u8 {
    assert!(distance <= u8::MAX as usize, "a conditional jump reaches 255 instructions far");
    distance as u8
}

/// The program that fails a refused call with EPERM; calls of another architecture still end the process.
pub(super) fn answering(program: &[sock_filter]) -> Vec<sock_filter> {
    let answer = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    let mut program = program.to_vec();
    for step in program.iter_mut().skip(PREFACE).filter(|step| (step.code, step.k) == (RETURN, KILL)) {
        step.k = answer;
    }
    program
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };

    use super::super::{LISTS, List, tables};
    use super::*;

    /// What the kernel would do with a call: `net/core/filter.c`, as far as the two assemblers go.
    fn verdict(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [number, architecture].map(u32::to_le_bytes).concat();
        data.extend([0; 8]);
        data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let branch = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                LOAD => {
                    let from = step.k as usize;
                    accumulator = u32::from_le_bytes(data[from..from + 4].try_into().expect("four bytes"));
                }
                AND => accumulator &= step.k,
                GO => at += step.k as usize,
                IF_EQUAL => at += branch(accumulator == step.k),
                IF_NOT_LESS => at += branch(accumulator >= step.k),
                RETURN => return step.k,
                other => panic!("{other:#x} is no instruction of ours"),
            }
        }
    }

    fn by_seccompiler(list: &List) -> BpfProgram {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for rule in list.rules {
            let alternatives = rules.entry(rule.number).or_default();
            let conditions: Vec<SeccompCondition> = rule
                .conditions
                .iter()
                .map(|condition| {
                    let test = SeccompCmpOp::MaskedEq(condition.mask.into());
                    SeccompCondition::new(
                        condition.argument,
                        SeccompCmpArgLen::Dword,
                        test,
                        condition.value.into(),
                    )
                    .expect("has an argument")
                })
                .collect();
            if !conditions.is_empty() {
                alternatives.push(SeccompRule::new(conditions).expect("has conditions"));
            }
        }
        let architecture = std::env::consts::ARCH.try_into().expect("is known");
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)
            .and_then(TryInto::try_into)
            .expect("compiles")
    }

    /// Arguments that fulfil each rule of a number, and the same with each single bit the other way round.
    fn arguments(list: &List, number: u32) -> Vec<[u64; 6]> {
        let mut tried = vec![[0; 6], [u64::MAX; 6], [u64::from(u32::MAX) + 1; 6]];
        for rule in list.rules.iter().filter(|rule| rule.number == i64::from(number)) {
            let mut right = [u64::MAX << 32; 6];
            for condition in rule.conditions {
                right[usize::from(condition.argument)] |= u64::from(condition.value);
            }
            tried.push(right);
            for bit in 0..64 * 6 {
                let mut wrong = right;
                wrong[bit / 64] ^= 1 << (bit % 64);
                tried.push(wrong);
            }
        }
        tried
    }

    fn filter(name: &str) -> &'static [sock_filter] {
        use tables::*;
        let filters = [
            &ACCOUNT, &AUDIT, &BROKER, &CLOCK, &COMPILE, &FILE, &FRONTEND, &FSFREEZE, &HOTPLUG, &NET,
            &NETADMIN, &POWER, &QUERY, &SPAWNER,
        ];
        filters.into_iter().find(|filter| filter.name == name).expect("each list has one").program
    }

    #[test]
    fn every_list_decides_as_what_seccompiler_makes_of_it() {
        let (mut allowed, mut different) = (0, Vec::new());
        for list in &LISTS {
            let (ours, theirs) = (filter(list.name), by_seccompiler(list));
            // All that there are, those of x32, and none at all.
            for number in
                (0..1024).chain(0x4000_0000..0x4000_0400).chain([0x7fff_ffff, 0x8000_0000, u32::MAX])
            {
                for given in arguments(list, number) {
                    let [ours, theirs] =
                        [ours, &theirs].map(|program| verdict(program, ARCHITECTURE, number, given));
                    allowed += usize::from(ours == ALLOW);
                    if ours != theirs {
                        different
                            .push(format!("{}: {number} {given:x?}: {ours:x} not {theirs:x}", list.name));
                    }
                }
            }
        }
        assert_eq!(different, Vec::<String>::new());
        assert!(allowed > 1000, "only {allowed} calls were allowed: nothing has been compared");
    }

    #[test]
    fn a_call_of_another_architecture_ends_the_process() {
        // AUDIT_ARCH_I386 of linux/audit.h.
        for list in &LISTS {
            assert_eq!(verdict(filter(list.name), 0x4000_0003, 0, [0; 6]), KILL, "{}", list.name);
            assert_eq!(verdict(&answering(filter(list.name)), 0x4000_0003, 0, [0; 6]), KILL, "{}", list.name);
        }
    }

    #[test]
    fn a_filter_that_answers_refuses_the_same_calls() {
        let answer = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
        let program = filter("query");
        for number in 0..1024 {
            let killing = verdict(program, ARCHITECTURE, number, [u64::MAX; 6]);
            let answering = verdict(&answering(program), ARCHITECTURE, number, [u64::MAX; 6]);
            assert_eq!(answering, if killing == KILL { answer } else { killing }, "{number}");
        }
    }
}
