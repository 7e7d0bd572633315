/**
 * Plays a Dockerfile as far as that goes without a container engine: the files that an image would hold, in a
 * directory. Copies obey .dockerignore, commands run on this machine with their absolute paths moved into the
 * directory; what the base image and its packages bring is this machine's. Knows the instructions that our Dockerfile
 * uses, and refuses others, so that it cannot play one wrongly in silence.
 */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {cpSync, existsSync, mkdirSync, readFileSync, statSync} from 'node:fs';
import {basename, join} from 'node:path';
import {text} from 'node:stream/consumers';

export interface Instruction {
	readonly name: string;
	/** What follows the name, continued lines joined, arguments put in. */
	readonly rest: string;
}

export interface Stage {
	readonly base: string;
	readonly name: string | undefined;
	readonly instructions: readonly Instruction[];
}

export interface Image {
	/** What of the image's root has come into being. */
	readonly root: string;
	readonly env: Readonly<Record<string, string>>;
	readonly command: readonly string[];
	/** What could only be done in the base image. */
	readonly notRun: readonly string[];
}

export function parseDockerfile(dockerfile: string): Stage[] {
	const stages: Array<{base: string; name: string | undefined; instructions: Instruction[]}> = [];
	const args = new Map<string, string>();
	for (const line of dockerfile
		.replaceAll(/\\\n/gv, ' ')
		.split('\n')
		.filter(each => each.trim() !== '' && !each.startsWith('#'))) {
		const [, name = '', given = ''] = /^([A-Z]+) (.+)$/v.exec(line) ?? [];
		const rest = given.replaceAll(/\$\{(\w+)\}/gv, (_, arg: string) => args.get(arg) ?? '');
		if (name === 'ARG') {
			const [arg = '', value = ''] = rest.split('=', 2);
			args.set(arg, value);
		} else if (name === 'FROM') {
			const [, base = '', stage] = /^(\S+)(?: AS (\S+))?$/v.exec(rest) ?? [];
			stages.push({base, name: stage, instructions: []});
		} else if (['USER', 'WORKDIR', 'COPY', 'RUN', 'ENV', 'LABEL', 'CMD'].includes(name)) {
			stages.at(-1)?.instructions.push({name, rest});
		} else {
			throw new Error(`cannot play ${line}`);
		}
	}

	return stages;
}

/** Of our kind: everything is ignored but names at the top. */
export function contextOf(dockerignore: string): readonly string[] {
	const [all, ...kept] = dockerignore.split('\n').filter(line => line !== '' && !line.startsWith('#'));
	if (all !== '*' || kept.some(name => !/^![^*\/]+$/v.test(name))) {
		throw new Error('cannot play this .dockerignore');
	}

	return kept.map(name => name.slice(1));
}

export interface PlayOptions {
	readonly repository: string;
	/** Empty; on the file system of the repository. */
	readonly directory: string;
	/** In place of commands that need the base image or the network: true when it has done the command's work. */
	readonly stand: (command: string, cwd: string) => boolean;
	readonly env: Readonly<Record<string, string>>;
}

export async function play(stages: readonly Stage[], {repository, directory, stand, env}: PlayOptions): Promise<Image> {
	const context = contextOf(readFileSync(join(repository, '.dockerignore'), 'utf8'));
	const notRun: string[] = [];
	let image: Image | undefined;
	for (const [index, {name = `stage-${index}`, instructions}] of stages.entries()) {
		const root = join(directory, name);
		mkdirSync(root);
		const own: Record<string, string> = {};
		let workdir = '/';
		let command: string[] = [];
		for (const {name: instruction, rest} of instructions) {
			if (instruction === 'WORKDIR') {
				workdir = rest;
				mkdirSync(join(root, workdir), {recursive: true});
			} else if (instruction === 'ENV') {
				Object.assign(own, Object.fromEntries(rest.split(' ').map(pair => pair.split('=', 2))));
			} else if (instruction === 'CMD') {
				command = JSON.parse(rest) as string[];
			} else if (instruction === 'COPY') {
				copy(rest, {from: stage => join(directory, stage), context, repository, root, workdir});
			} else if (instruction === 'RUN' && rest.startsWith('microdnf ')) {
				notRun.push(rest);
			} else if (instruction === 'RUN' && !stand(rest, join(root, workdir))) {
				await run(rest, join(root, workdir), {
					...env,
					...own,
					PATH: `${join(root, 'usr/local/bin')}:${env['PATH'] ?? ''}`,
				});
			}
		}

		image = {root, env: own, command, notRun};
	}

	if (image === undefined) {
		throw new Error('no stage');
	}

	return image;
}

interface Places {
	readonly from: (stage: string) => string;
	readonly context: readonly string[];
	readonly repository: string;
	readonly root: string;
	readonly workdir: string;
}

/** A directory's content goes to the destination, not the directory itself, as Docker has it. */
function copy(rest: string, {from, context, repository, root, workdir}: Places): void {
	const [, stage, words = ''] = /^(?:--from=(\S+) )?(.+)$/v.exec(rest) ?? [];
	const paths = words.split(' ');
	const destination = paths.pop() ?? '';
	for (const path of paths) {
		if (stage === undefined && !context.includes(path.split('/', 1)[0] ?? '')) {
			throw new Error(`COPY ${path}: .dockerignore keeps it out`);
		}

		const source = join(stage === undefined ? repository : from(stage), path);
		if (!existsSync(source)) {
			throw new Error(`COPY ${path}: it does not exist`);
		}

		const target = join(root, destination.startsWith('/') ? '' : workdir, destination);
		cpSync(source, statSync(source).isDirectory() ? target : join(target, basename(path)), {
			recursive: true,
			verbatimSymlinks: true,
		});
	}
}

async function run(command: string, cwd: string, env: Readonly<Record<string, string>>): Promise<void> {
	const child = spawn('sh', ['-euc', command], {cwd, env, stdio: ['ignore', 'pipe', 'pipe']});
	const [stdout, stderr, [code]] = await Promise.all([
		text(child.stdout),
		text(child.stderr),
		once(child, 'close') as Promise<[number | null]>,
	]);
	if (code !== 0) {
		throw new Error(`${command} ended with ${String(code)}:\n${stdout}${stderr}`);
	}
}
