/** Builds the program as for the image, with the Node options of main.ts, for measurements. */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {readFile, symlink} from 'node:fs/promises';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';

const repository = fileURLToPath(new URL('..', import.meta.url));

/** Builds into `directory/dist`. @throws Error if the build fails */
export async function build(directory: string): Promise<void> {
	const [code] = (await once(
		spawn(
			process.execPath,
			[
				join(repository, 'node_modules/typescript/bin/tsc'),
				'-p',
				join(repository, 'tsconfig.build.json'),
				'--outDir',
				join(directory, 'dist'),
			],
			{stdio: 'inherit'},
		),
		'exit',
	)) as [number];
	if (code !== 0) {
		throw new Error('the build failed');
	}

	await Promise.all(
		['node_modules', 'package.json', 'proto'].map(async name =>
			symlink(join(repository, name), join(directory, name)),
		),
	);
}

/** The options in the first line of main.ts. */
export async function nodeOptions(): Promise<string[]> {
	const [firstLine = ''] = (await readFile(join(repository, 'src/main.ts'), 'utf8')).split('\n');
	return firstLine.split(' ').filter(word => word.startsWith('--'));
}

export interface Resident {
	readonly anonymousMib: number;
	readonly fileMib: number;
}

/** The resident memory of a process. Source: proc(5), /proc/PID/status. */
export async function residentOf(pid: number): Promise<Resident> {
	const status = await readFile(`/proc/${pid}/status`, 'utf8');
	const mib = (name: string): number =>
		Number(new RegExp(String.raw`^${name}:\s+(\d+) kB`, 'm').exec(status)?.[1]) / 1024;
	return {anonymousMib: mib('RssAnon'), fileMib: mib('RssFile')};
}
