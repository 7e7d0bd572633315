// Which test files need the lab. A file does when it, or what it imports, starts libvirtd, sshd, QEMU or a registry, makes
// network namespaces, or runs a tool that a developer's machine need not have: that is what the paths below are for.
import {globSync, readFileSync} from 'node:fs';
import {dirname, join} from 'node:path';

const starters = [
	/^test\/(?:lab|chaos|big-endian|interop|container|deploy|e2e)\//v,
	/^test\/support\/libvirtd\.ts$/v,
	/^test\/support\/sshd\.ts$/v,
	/^test\/support\/test-driver-host\.ts$/v,
	/^test\/network\/testbed\.ts$/v,
	/^test\/image\/registry-server\.ts$/v,
	/^test\/metrics\/promtool\.ts$/v,
	/^test\/podvm\/cidata\.test\.ts$/v,
	/^test\/podvm\/iso9660\.test\.ts$/v,
	/^test\/journal\/directory-probe\.test\.ts$/v,
	// Measures the memory of processes under attack, which takes a while.
	/^test\/webhook\/process\.test\.ts$/v,
];

/** @param suite 'unit', 'lab', or undefined for all @returns paths from the project's directory */
export function testFiles(suite) {
	const files = globSync('test/**/*.test.ts').sort();
	const gone = starters.filter(starter => !globSync('test/**/*.ts').some(file => starter.test(file)));
	if (gone.length > 0) {
		throw new Error(`test/suites.js: no file matches ${gone.join(' or ')}. Was it renamed?`);
	}

	if (suite === undefined) {
		return files;
	}

	if (suite !== 'unit' && suite !== 'lab') {
		throw new Error(`SUITE is "${suite}"; expected unit or lab`);
	}

	return files.filter(file => needsLab(file, new Set()) === (suite === 'lab'));
}

function needsLab(file, seen) {
	if (seen.has(file)) {
		return false;
	}

	seen.add(file);
	return starters.some(starter => starter.test(file)) || importsOf(file).some(other => needsLab(other, seen));
}

/** Of files below test/ only. */
function importsOf(file) {
	return [...readFileSync(file, 'utf8').matchAll(/ from '(\.[^']+\.[jt]s)'/gv)]
		.map(([, path]) => join(dirname(file), path))
		.filter(path => path.startsWith('test/'));
}
