/**
 * What `npm run build` makes, for a Node.js that lacks the newest syntax: the same sources through the same compiler,
 * file by file, only with an older target. Types have been checked by then (`npm run lint`).
 */
import {mkdir, readdir, readFile, symlink, writeFile} from 'node:fs/promises';
import {dirname, join, relative} from 'node:path';
import {fileURLToPath} from 'node:url';
import ts from 'typescript';

const repository = fileURLToPath(new URL('../..', import.meta.url));

/** Beside src/, what runs there. */
const programs = [
	'test/big-endian/list-domains.ts',
	'test/big-endian/polyfill.ts',
	'test/big-endian/print-digests.ts',
	'test/big-endian/vectors.ts',
	'test/big-endian/zlib.ts',
	'test/lab/zipl.ts',
	'test/libvirt/golden.ts',
	'test/ttrpc/conversation.ts',
];
/** Looked for where they are in the repository. */
const links = ['node_modules', 'package.json', 'proto', 'test/fixtures'];

/** As tsconfig.build.json, except for the target: `using` becomes try and finally. */
const compilerOptions: ts.CompilerOptions = {
	target: ts.ScriptTarget.ES2022,
	module: ts.ModuleKind.ESNext,
	isolatedModules: true,
	verbatimModuleSyntax: true,
	rewriteRelativeImportExtensions: true,
};

/** @param directory is given the repository's layout, with `.js` for `.ts` */
export async function emit(directory: string): Promise<void> {
	const sources = (await readdir(join(repository, 'src'), {recursive: true}))
		.filter(path => path.endsWith('.ts'))
		.map(path => join('src', path));
	await Promise.all(
		[...sources, ...programs].map(async path => {
			const {outputText, diagnostics = []} = ts.transpileModule(await readFile(join(repository, path), 'utf8'), {
				fileName: path,
				compilerOptions,
				reportDiagnostics: true,
			});
			if (diagnostics.length > 0) {
				throw new SyntaxError(
					`${path}: ${diagnostics.map(({messageText}) => ts.flattenDiagnosticMessageText(messageText, '\n')).join('; ')}`,
				);
			}

			const target = join(directory, path.replace(/\.ts$/, '.js'));
			await mkdir(dirname(target), {recursive: true});
			const zlib = `./${relative(dirname(target), join(directory, 'test/big-endian/zlib.js'))}`;
			// TypeScript 6.0 does not rewrite the extension of an `import()` inside of a function whose `using` it has
			// to lower.
			const rewritten = outputText.replaceAll(/(?<=\bimport\('\.[^']*)\.ts(?='\))/gv, '.js');
			await writeFile(
				target,
				path === 'test/big-endian/zlib.ts' ? rewritten : rewritten.replaceAll("'node:zlib'", `'${zlib}'`),
			);
		}),
	);
	await Promise.all(links.map(async path => symlink(join(repository, path), join(directory, path))));
}
