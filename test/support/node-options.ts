/** The options of Node in production, and the signal handlers of a running process. */
import {readFileSync} from 'node:fs';
import {readFile} from 'node:fs/promises';
import {constants} from 'node:os';

const [firstLine = ''] = readFileSync(new URL('../../src/main.ts', import.meta.url), 'utf8').split('\n');

/** From the first line of main.ts, with which the image starts it. */
export const nodeOptions: readonly string[] = firstLine.split(' ').filter(word => word.startsWith('--'));

/** Signals that the process handles (proc(5), SigCgt). */
export async function caughtSignals(pid: number): Promise<readonly string[]> {
	const [, mask = '0'] = /^SigCgt:\s*([\da-f]+)$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8')) ?? [];
	return Object.entries(constants.signals)
		.filter(([, number]) => (BigInt(`0x${mask}`) & (1n << BigInt(number - 1))) !== 0n)
		.map(([name]) => name);
}
