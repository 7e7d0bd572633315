/** promtool of Prometheus, as a judge of our metrics and rules. */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {text} from 'node:stream/consumers';

export interface Verdict {
	readonly status: number | null;
	/** What it printed, on both streams. */
	readonly output: string;
}

export async function promtool(args: readonly string[], stdin = ''): Promise<Verdict> {
	const child = spawn('promtool', args, {stdio: ['pipe', 'pipe', 'pipe']});
	child.stdin.end(stdin);
	const [out, err, [status]] = await Promise.all([
		text(child.stdout),
		text(child.stderr),
		once(child, 'close') as Promise<[number | null]>,
	]);
	return {status, output: out + err};
}

/** Checks syntax and naming. @returns its complaints; '' if there are none */
export async function metricsComplaints(exposition: string): Promise<string> {
	const {status, output} = await promtool(['check', 'metrics'], exposition);
	return status === 0 ? output.trim() : `status ${String(status)}: ${output.trim()}`;
}
