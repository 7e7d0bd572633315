import {spawn} from 'node:child_process';
import {once} from 'node:events';
import test from 'ava';
import fc from 'fast-check';
import {isGone, noteBytes, readNote, thisPusher, writeNote} from '../../src/image/pusher.ts';

test('a note identifies its writer', async t => {
	const pusher = await thisPusher();
	t.is(pusher.pid, process.pid);
	const note = writeNote(pusher);
	t.is(note.length, noteBytes);
	t.deepEqual(readNote(note), {isComplete: false, pusher});
});

test('a volume that was never written is incomplete; a volume with other content is complete', t => {
	t.deepEqual(readNote(Buffer.alloc(noteBytes)), {isComplete: false});
	t.deepEqual(readNote(Buffer.alloc(0)), {isComplete: false});
	t.deepEqual(readNote(Buffer.from('QFI\xfb', 'latin1')), {isComplete: true});
});

test('a process has ended if it is gone or its pid is reused; on another machine this is unknown', async t => {
	const here = await thisPusher();
	t.false(await isGone(here));
	t.true(await isGone({...here, startedAt: '1'}));
	t.is(await isGone({...here, machine: 'another'}), undefined);
	const child = spawn('true');
	await once(child, 'exit');
	t.true(await isGone({...here, pid: child.pid ?? 0}));
});

test('whatever follows the title, the volume is incomplete', async t => {
	const note = writeNote(await thisPusher());
	fc.assert(
		fc.property(
			fc.array(fc.tuple(fc.integer({min: 60, max: 300}), fc.nat(255)), {maxLength: 10}),
			fc.integer({min: 53, max: noteBytes}),
			(changes, length) => {
				const damaged = Buffer.from(note);
				for (const [at, value] of changes) {
					damaged[at] = value;
				}

				t.false(readNote(damaged.subarray(0, length)).isComplete);
			},
		),
	);
});
