/**
 * The note at the start of an incomplete volume, which identifies the process that writes the volume. A volume with a
 * note is not an image: QEMU finds no qcow2 there, and a machine cannot boot from it. Another process may remove the
 * volume if the process in the note has ended.
 */
import {readFile, readlink} from 'node:fs/promises';
import {at} from '../core/json.ts';

export interface Pusher {
	/** The boot of this machine, and the pid namespace of the process. */
	readonly machine: string;
	readonly pid: number;
	/** Start time of the process in clock ticks of the kernel: process ids are recycled. */
	readonly startedAt: string;
}

/** Size of the note; at most the bytes that are written last when an image is uploaded. */
export const noteBytes = 4096;
const title = 'cloud-api-adaptor: this pod VM image is not complete\n';

/** This process. */
export async function thisPusher(): Promise<Pusher> {
	const pid = Number(await readlink('/proc/self'));
	return {machine: await machineName(), pid, startedAt: (await startOf(pid)) ?? ''};
}

/** @returns whether the process has ended; undefined if that cannot be determined here */
export async function isGone({machine, pid, startedAt}: Pusher): Promise<boolean | undefined> {
	if (machine !== (await machineName())) {
		return undefined;
	}

	const found = await startOf(pid);
	// If processes of other users are hidden (proc(5), hidepid), process 1 is hidden too: then an invisible process may
	// still run.
	return found === undefined && (await startOf(1)) === undefined ? undefined : found !== startedAt;
}

export function writeNote(pusher: Pusher): Buffer {
	const note = Buffer.alloc(noteBytes);
	note.write(`${title}${JSON.stringify(pusher)}\n`);
	return note;
}

/**
 * Parses the first bytes of a volume. A volume that was created and never written is incomplete too, with an unknown
 * owner.
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

/** proc(5), /proc/PID/stat: field 22; field 2 is in parentheses and may contain anything. A zombie has ended. */
async function startOf(pid: number): Promise<string | undefined> {
	try {
		const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
		const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
		return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
	} catch {
		return undefined;
	}
}
