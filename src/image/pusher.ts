/**
 * Who is writing a volume: the note that stands at its start until it is complete. A volume with such a note is no
 * image to anybody: QEMU finds no qcow2 there and a machine nothing to boot. Whoever finds the note of a process that
 * is gone may remove the volume.
 */
import {readFile, readlink} from 'node:fs/promises';
import {at} from '../core/json.ts';

export interface Pusher {
	/** This boot of this machine, and the namespace that the process id means something in. */
	readonly machine: string;
	readonly pid: number;
	/** When the process started, in the kernel's ticks: process ids are recycled. */
	readonly startedAt: string;
}

/** Of the note; not more than the bytes that come last when an image is uploaded. */
export const noteBytes = 4096;
const title = 'cloud-api-adaptor: this pod VM image is not complete\n';

/** This process. */
export async function thisPusher(): Promise<Pusher> {
	const pid = Number(await readlink('/proc/self'));
	return {machine: await machineName(), pid, startedAt: (await startOf(pid)) ?? ''};
}

/** @returns whether the process is gone; undefined when that cannot be known here */
export async function isGone({machine, pid, startedAt}: Pusher): Promise<boolean | undefined> {
	if (machine !== (await machineName())) {
		return undefined;
	}

	const found = await startOf(pid);
	// Where other users' processes are hidden (proc(5), hidepid), the first one is too: then not to be seen means
	// nothing.
	return found === undefined && (await startOf(1)) === undefined ? undefined : found !== startedAt;
}

export function writeNote(pusher: Pusher): Buffer {
	const note = Buffer.alloc(noteBytes);
	note.write(`${title}${JSON.stringify(pusher)}\n`);
	return note;
}

/**
 * What the first bytes of a volume say about it. One that was made and never written to is not complete either; whose
 * it is is not known.
 */
export function readNote(
	start: Buffer,
): {readonly isComplete: true} | {readonly isComplete: false; readonly pusher?: Pusher} {
	if (start.every(byte => byte === 0)) {
		return {isComplete: false};
	}

	if (!start.subarray(0, title.length).equals(Buffer.from(title))) {
		return {isComplete: true};
	}

	try {
		const note: unknown = JSON.parse(start.subarray(title.length, start.indexOf('\n', title.length)).toString());
		const [machine, pid, startedAt] = ['machine', 'pid', 'startedAt'].map(name => at(note, name));
		return typeof machine === 'string' && typeof pid === 'number' && typeof startedAt === 'string'
			? {isComplete: false, pusher: {machine, pid, startedAt}}
			: {isComplete: false};
	} catch {
		return {isComplete: false};
	}
}

async function machineName(): Promise<string> {
	const [boot, namespace] = await Promise.all([
		readFile('/proc/sys/kernel/random/boot_id', 'utf8'),
		readlink('/proc/self/ns/pid'),
	]);
	return `${boot.trim()} ${namespace}`;
}

/** proc(5), /proc/PID/stat: the 22nd field; the second is in parentheses and may hold anything. A zombie has ended. */
async function startOf(pid: number): Promise<string | undefined> {
	try {
		const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
		const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
		return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
	} catch {
		return undefined;
	}
}
