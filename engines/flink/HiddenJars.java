import java.io.IOException;
import java.io.InputStream;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Enumeration;
import java.util.List;

/**
 * A system class loader over a folder of jars that class path scanners can't list.
 *
 * <p>Beam's Flink job server uploads every jar of its class path with each job: 152 MB. The cluster that flink.sh
 * starts has these jars on its own class path already. Started with {@code -Djava.system.class.loader=HiddenJars
 * -Dhidden.jars=FOLDER}, the job server finds its classes and nothing to upload.
 */
public final class HiddenJars extends ClassLoader {
  /** The real loader; in an array, since scanners follow fields whose type is a class loader. */
  private final Object[] hidden;

  public HiddenJars(ClassLoader parent) throws IOException {
    super(parent);
    List<URL> jars = new ArrayList<>();
    try (DirectoryStream<Path> folder = Files.newDirectoryStream(Paths.get(System.getProperty("hidden.jars")), "*.jar")) {
      for (Path jar : folder) {
        jars.add(jar.toUri().toURL());
      }
    }
    hidden = new Object[] {new URLClassLoader(jars.toArray(new URL[0]), null)};
  }

  private URLClassLoader jars() {
    return (URLClassLoader) hidden[0];
  }

  @Override
  protected Class<?> findClass(String name) throws ClassNotFoundException {
    URL resource = jars().findResource(name.replace('.', '/') + ".class");
    if (resource == null) {
      throw new ClassNotFoundException(name);
    }
    try (InputStream stream = resource.openStream()) {
      byte[] code = stream.readAllBytes();
      definePackageOf(name);
      return defineClass(name, code, 0, code.length);
    } catch (IOException error) {
      throw new ClassNotFoundException(name, error);
    }
  }

  private void definePackageOf(String name) {
    int end = name.lastIndexOf('.');
    if (end <= 0 || getDefinedPackage(name.substring(0, end)) != null) {
      return;
    }
    try {
      definePackage(name.substring(0, end), null, null, null, null, null, null, null);
    } catch (IllegalArgumentException error) {
      // Another thread has defined it since.
    }
  }

  @Override
  protected URL findResource(String name) {
    return jars().findResource(name);
  }

  @Override
  protected Enumeration<URL> findResources(String name) throws IOException {
    return jars().findResources(name);
  }
}
