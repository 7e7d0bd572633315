/** Runs a program to its end; rejects with its standard error when it is missing or fails. */
import {spawn} from 'node:child_process';
import {buffer, text} from 'node:stream/consumers';

export async function run(program: string, args: readonly string[], input = ''): Promise<Buffer> {
	const child = spawn(program, args, {stdio: ['pipe', 'pipe', 'pipe']});
	const exit = new Promise<number | null>((resolve, reject) => {
		child.once('error', reject);
		child.once('close', resolve);
	});
	child.stdin.on('error', () => undefined);
	child.stdin.end(input);
	const [output, errors, code] = await Promise.all([buffer(child.stdout), text(child.stderr), exit]);
	if (code !== 0) {
		throw new Error(`${program} ended with ${String(code)}: ${errors}${output.toString()}`);
	}

	return output;
}
